// Pictures are read here and travel inside the question: nothing is uploaded to a file.
const input = element.querySelector("input");
const zone = element.querySelector(".zone");
const shelf = element.querySelector(".shelf");
const wrong = element.querySelector(".wrong");

const say = (text) => {
  wrong.textContent = text;
  wrong.hidden = !text;
};

const read = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve({ name: file.name || "pasted picture", data: reader.result });
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });

const show = () => {
  const pictures = (props.value && props.value.pictures) || [];
  shelf.replaceChildren(
    ...pictures.map(({ name, data }) => {
      const item = document.createElement("li");
      const image = document.createElement("img");
      image.alt = name;
      image.title = name;
      image.onerror = () => item.classList.add("unseen");
      image.src = data;
      item.append(image);
      return item;
    })
  );
};

const take = async (files) => {
  const chosen = Array.from(files);
  if (!chosen.length) return;
  const bytes = chosen.reduce((sum, file) => sum + file.size, 0);
  if (chosen.length > props.pictures) {
    say(`${chosen.length} pictures are too many; give up to ${props.pictures} of one person`);
    return;
  }
  if (bytes > props.megabytes * 1e6) {
    say(`the pictures hold ${(bytes / 1e6).toFixed(1)} MB, and up to ${props.megabytes} MB are taken`);
    return;
  }
  try {
    props.value = { pictures: await Promise.all(chosen.map(read)) };
  } catch (error) {
    say(`a picture cannot be read: ${error.message}`);
    return;
  }
  say("");
  show();
  trigger("submit");
};

input.addEventListener("change", () => {
  take(input.files);
  // The same file may be chosen again.
  input.value = "";
});
for (const kind of ["dragover", "dragenter"]) {
  zone.addEventListener(kind, (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
}
for (const kind of ["dragleave", "drop"]) {
  zone.addEventListener(kind, () => zone.classList.remove("over"));
}
zone.addEventListener("drop", (event) => {
  event.preventDefault();
  take(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData && event.clipboardData.files.length) take(event.clipboardData.files);
});
watch("value", () => {
  say("");
  show();
});
