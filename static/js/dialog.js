// A dialog that htmx has filled opens. A click beside it closes it, as the Escape key does by itself, but not
// over choices that were made in it; a link to what lies behind it closes it too.
(() => {
  document.addEventListener("htmx:afterSwap", (event) => {
    const dialog = event.detail.target;
    if (!(dialog instanceof HTMLDialogElement)) return;
    if (!dialog.open) dialog.showModal();
    dialog.querySelector("[role=alert]")?.scrollIntoView({ block: "nearest" });
  });
  document.addEventListener("click", (event) => {
    const { target } = event;
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (target instanceof HTMLDialogElement && target.open && !target.querySelector("input:checked")) target.close();
    const link = target.closest?.("dialog a[href*='#']");
    if (link && link.pathname === location.pathname) link.closest("dialog").close();
  });
})();
