// Whoever of the gallery is clicked is asked with.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-row]");
  if (button) trigger("select", { row: Number(button.dataset.row) });
});
