// Say when the hub does not answer, and take it back when it does.
(() => {
  const place = document.getElementById("notices");
  const template = document.getElementById("notice-template");
  const show = (text) => {
    const notice = place.querySelector("[data-connection]") ?? template.content.firstElementChild.cloneNode(true);
    notice.dataset.connection = "";
    if (notice.textContent !== text) notice.textContent = text;
    if (!notice.isConnected) place.append(notice);
  };

  // What asks again by itself says so; anything else must be tried again.
  document.addEventListener("htmx:sendError", (event) => {
    const polls = event.detail.elt.matches("[hx-trigger^=every]");
    show(`The hub does not answer. ${polls ? "This page keeps trying." : "Try again in a moment."}`);
  });
  document.addEventListener("htmx:responseError", (event) => {
    show(event.detail.xhr.status === 404 ? "That is no longer there. Reload the page." : "The hub could not do that. Try again in a moment.");
  });
  document.addEventListener("htmx:afterOnLoad", (event) => {
    if (event.detail.xhr.status < 400) place.querySelector("[data-connection]")?.remove();
  });
})();
