// A dialog that htmx has filled opens; a click beside it closes it, as the Escape key does by itself.
(() => {
  document.addEventListener("htmx:afterSwap", (event) => {
    const dialog = event.detail.target;
    if (!(dialog instanceof HTMLDialogElement)) return;
    if (!dialog.open) dialog.showModal();
    dialog.querySelector("[role=alert]")?.scrollIntoView({ block: "nearest" });
  });
  document.addEventListener("click", (event) => {
    if (event.target instanceof HTMLDialogElement && event.target.open) event.target.close();
  });
})();
