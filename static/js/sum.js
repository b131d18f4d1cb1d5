// A button that says how much is chosen: <button data-sum="NAME"> beside boxes of that name with data-bytes.
(() => {
  // As the pages write sizes: three digits, decimal units.
  const size = (bytes) => {
    const units = ["B", "kB", "MB", "GB", "TB"];
    let place = 0;
    while (bytes >= 999.5 && place < units.length - 1) [bytes, place] = [bytes / 1000, place + 1];
    const digits = place ? Math.max(0, 2 - Math.floor(Math.log10(Math.max(bytes, 1)))) : 0;
    return `${bytes.toFixed(digits)} ${units[place]}`;
  };
  const show = (form) => {
    const button = form?.querySelector("[data-sum]");
    if (!button) return;
    const chosen = [...form.querySelectorAll(`input[name="${button.dataset.sum}"]:checked`)];
    const bytes = chosen.reduce((sum, box) => sum + Number(box.dataset.bytes || 0), 0);
    button.dataset.plain ??= button.textContent;
    const count = `${chosen.length} quant${chosen.length > 1 ? "s" : ""}`;
    button.textContent = chosen.length ? `${button.dataset.plain} ${count}, ${size(bytes)}` : button.dataset.plain;
  };

  document.addEventListener("change", (event) => show(event.target.form));
  document.addEventListener("htmx:afterSwap", (event) => show(event.detail.target.querySelector("form:has([data-sum])")));
  // Also when a browser brings back a page with the boxes as they were.
  addEventListener("pageshow", () => document.querySelectorAll("form:has([data-sum])").forEach(show));
})();
