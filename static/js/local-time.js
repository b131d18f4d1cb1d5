// Times arrive in UTC; show them in the visitor's own zone, with the full date on hover.
(() => {
  const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
  const exact = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
  const full = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });

  const show = (element) => {
    const when = new Date(element.dateTime);
    const isToday = when.toDateString() === new Date().toDateString();
    const isExact = element.dataset.localTime === "exact";
    const date = isToday ? (isExact ? "" : "today, ") : `${day.format(when)}, `;
    element.textContent = date + (isExact ? exact : clock).format(when);
    element.title = full.format(when);
    element.removeAttribute("data-local-time");
  };
  const showAll = (root) => root.querySelectorAll("time[data-local-time]").forEach(show);

  showAll(document);
  document.addEventListener("htmx:load", (event) => showAll(event.target.parentElement ?? document));
})();
