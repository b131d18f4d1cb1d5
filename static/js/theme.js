// The theme: as the system, light or dark, remembered. Runs before the first paint, so it must stay small.
(() => {
  const order = ["system", "light", "dark"];
  const root = document.documentElement;
  const read = () => {
    try { return localStorage.getItem("theme"); } catch { return null; }
  };
  const show = (theme) => { root.dataset.theme = order.includes(theme) ? theme : "system"; };

  root.dataset.script = "";
  show(read());
  document.addEventListener("DOMContentLoaded", () => {
    document.querySelector("[data-theme-toggle]")?.removeAttribute("hidden");
  });
  document.addEventListener("click", (event) => {
    if (!event.target.closest?.("[data-theme-toggle]")) return;
    show(order[(order.indexOf(root.dataset.theme) + 1) % order.length]);
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* private window: lasts for this page */ }
  });
})();
