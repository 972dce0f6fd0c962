// On a phone what was found lies below the question.
watch("value", () => {
  if (props.value && window.matchMedia("(max-width: 640px)").matches) element.scrollIntoView({ block: "start" });
});
