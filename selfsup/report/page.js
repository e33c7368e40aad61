"use strict";
// A page of something that changes is read again, unless its reader is in the middle of something.
const seconds = Number(document.body.dataset.refresh ?? 0);
if (seconds > 0) {
  setInterval(() => {
    const filters = [...document.querySelectorAll("input.filter")].some((input) => input.value !== "");
    if (!filters && !document.querySelector("input:checked, details[open]")) location.reload();
  }, 1000 * seconds);
}
// Rows of a sortable table can be filtered by their text: all words must occur.
for (const table of document.querySelectorAll("table.sortable")) {
  if (table.tBodies[0].rows.length < 2) continue;
  const input = document.createElement("input");
  input.type = "search";
  input.className = "filter";
  input.placeholder = "filter";
  input.setAttribute("aria-label", "show the rows with these words");
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
  table.closest(".scroll").before(input);
}
// Each heading of a sortable table becomes a button; the first click puts the largest number or the first name on top.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const number = heading.classList.contains("number");
      const now = heading.getAttribute("aria-sort");
      const ascending = now ? now === "descending" : !number;
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const rows = [...table.tBodies[0].rows];
      rows.sort((one, other) => {
        const a = key(one), b = key(other);
        if (a === "" || b === "") return (a === "") - (b === "");  // what is missing stays below
        const order = number ? a - b : a.localeCompare(b, undefined, { numeric: true });
        return ascending ? order : -order;
      });
      table.tBodies[0].append(...rows);
    });
  });
}
