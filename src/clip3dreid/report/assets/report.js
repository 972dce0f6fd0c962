"use strict";
// Tables: a click on a heading sorts by its column, numbers as numbers, blanks last.
const number = (text) => {
  const found = text.replace(/[\u2212\u2013]/g, "-").replace(/(\d),(?=\d{3})/g, "$1").match(/^[+-]?\d+(\.\d+)?(e[+-]?\d+)?/i);
  return found ? parseFloat(found[0]) : NaN;
};
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((one) => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = table.tBodies[0];
    const text = (row) => row.cells[column].textContent.trim();
    const rows = [...body.rows];
    const numeric = rows.every((row) => !text(row) || !Number.isNaN(number(text(row))));
    rows.sort((one, other) => {
      const [a, b] = [text(one), text(other)];
      if (!a || !b) return !a - !b;
      const order = numeric ? number(a) - number(b) : a.localeCompare(b, undefined, { numeric: true });
      return up ? order : -order;
    });
    body.append(...rows);
  }));
}

// Bodies: the GLB that is offered for download is what is drawn, nearest faces last.
function readGlb(link) {
  const raw = atob(link.href.slice(link.href.indexOf(",") + 1));
  const bytes = Uint8Array.from(raw, (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const length = view.getUint32(12, true);
  const scene = JSON.parse(new TextDecoder().decode(bytes.subarray(20, 20 + length)));
  const start = 20 + length + 8;
  const mesh = scene.meshes[0].primitives[0];
  const [positions, indices] = [mesh.attributes.POSITION, mesh.indices].map((place) => {
    const accessor = scene.accessors[place];
    const part = scene.bufferViews[accessor.bufferView];
    const kind = { 5126: Float32Array, 5123: Uint16Array, 5125: Uint32Array }[accessor.componentType];
    return new kind(bytes.slice(start + part.byteOffset, start + part.byteOffset + part.byteLength).buffer);
  });
  return { positions, indices };
}
function show(figure) {
  const canvas = figure.querySelector("canvas"), slider = figure.querySelector("input");
  const { positions, indices } = readGlb(figure.querySelector("a"));
  const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
  positions.forEach((value, place) => {
    low[place % 3] = Math.min(low[place % 3], value);
    high[place % 3] = Math.max(high[place % 3], value);
  });
  const middle = low.map((value, axis) => (value + high[axis]) / 2);
  const count = positions.length / 3, faces = indices.length / 3;
  const turned = new Float32Array(positions.length), depth = new Float32Array(faces), bright = new Float32Array(faces);
  const order = new Uint32Array(faces);
  const draw = () => {
    const scale = Math.min(2, window.devicePixelRatio || 1);
    const width = canvas.clientWidth * scale, height = canvas.clientHeight * scale;
    if (!width || !height) return;
    canvas.width = width; canvas.height = height;
    const angle = slider.value * Math.PI / 180, c = Math.cos(angle), s = Math.sin(angle);
    const across = Math.hypot(high[0] - low[0], high[2] - low[2]);
    const size = 0.96 * Math.min(height / (high[1] - low[1]), width / across);
    for (let i = 0; i < count; i++) {
      const x = positions[3 * i] - middle[0], y = positions[3 * i + 1] - middle[1], z = positions[3 * i + 2] - middle[2];
      turned[3 * i] = width / 2 + size * (c * x + s * z);
      turned[3 * i + 1] = height / 2 - size * y;
      turned[3 * i + 2] = size * (c * z - s * x);
    }
    let seen = 0;
    for (let f = 0; f < faces; f++) {
      const [a, b, d] = [3 * indices[3 * f], 3 * indices[3 * f + 1], 3 * indices[3 * f + 2]];
      const ux = turned[b] - turned[a], uy = turned[a + 1] - turned[b + 1], uz = turned[b + 2] - turned[a + 2];
      const vx = turned[d] - turned[a], vy = turned[a + 1] - turned[d + 1], vz = turned[d + 2] - turned[a + 2];
      const nx = uy * vz - uz * vy, ny = uz * vx - ux * vz, nz = ux * vy - uy * vx;
      if (nz <= 0) continue;
      depth[f] = turned[a + 2] + turned[b + 2] + turned[d + 2];
      bright[f] = Math.max(0, (0.25 * nx + 0.45 * ny + 0.86 * nz) / Math.hypot(nx, ny, nz));
      order[seen++] = f;
    }
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, width, height);
    for (const f of order.subarray(0, seen).sort((one, other) => depth[one] - depth[other])) {
      const level = Math.round(70 + 150 * bright[f]);
      pen.fillStyle = pen.strokeStyle = `rgb(${level},${level},${Math.round(level * 1.03)})`;
      pen.beginPath();
      for (let corner = 0; corner < 3; corner++) {
        const v = 3 * indices[3 * f + corner];
        pen.lineTo(turned[v], turned[v + 1]);
      }
      pen.closePath(); pen.fill(); pen.stroke();
    }
    canvas.dataset.drawn = slider.value;
  };
  slider.addEventListener("input", draw);
  let from = null;
  canvas.addEventListener("pointerdown", (event) => {
    from = { x: event.clientX, angle: Number(slider.value) };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!from) return;
    slider.value = ((from.angle + (event.clientX - from.x) + 540) % 360) - 180;
    draw();
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { from = null; });
  draw();
  new ResizeObserver(draw).observe(canvas);
}
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) { watcher.unobserve(entry.target); show(entry.target); }
}, { rootMargin: "50%" });
document.querySelectorAll("figure.body").forEach((figure) => watcher.observe(figure));
window.addEventListener("beforeprint", () => {
  document.querySelectorAll("figure.body").forEach((figure) => {
    if (!figure.querySelector("canvas").dataset.drawn) { watcher.unobserve(figure); show(figure); }
  });
  document.querySelectorAll("details").forEach((one) => { if (!one.dataset.long) one.open = true; });
});
