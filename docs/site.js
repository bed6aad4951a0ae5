// From the disk a browser lets no page search the others: no field that finds nothing.
if (location.protocol === "file:") {
  window.Worker = class { postMessage() {} };
  document.addEventListener("DOMContentLoaded", () => document.querySelector('[role="search"]')?.remove());
}
