// Buttons with data-copy put that text on the clipboard and say so.
(() => {
  const write = async (text) => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    // Browsers give the clipboard only to https and localhost; a hub on the local net is often neither.
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (!done) throw new Error("copy refused");
  };

  const reveal = (root) => root.querySelectorAll("[data-copy][hidden]").forEach((b) => b.removeAttribute("hidden"));
  reveal(document);
  document.addEventListener("htmx:load", (event) => reveal(event.target));
  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("[data-copy]");
    if (!button) return;
    const said = button.querySelector(".copy__said");
    const before = said.innerHTML;
    try {
      await write(button.dataset.copy);
      said.textContent = "Copied";
    } catch {
      said.textContent = "Select it by hand";
    }
    setTimeout(() => { said.innerHTML = before; }, 1500);
  });
})();
