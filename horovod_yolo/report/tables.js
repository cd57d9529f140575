"use strict";
// Long tables get a box that hides the rows without its text, and all are sorted by the column that is clicked.
const MANY = 8;

function value(cell) {
  const number = Number(cell.textContent.replace(/[,%]/g, ""));
  return cell.textContent.trim() === "" || Number.isNaN(number) ? cell.textContent : number;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), undefined, {numeric: true});
}

function sort(table, column, heading) {
  const down = heading.getAttribute("aria-sort") === "ascending";
  for (const other of table.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...table.rows].slice(1);
  rows.sort((a, b) => (down ? -1 : 1) * compare(value(a.cells[column]), value(b.cells[column])));
  rows.forEach(row => row.parentNode.append(row));
}

function filter(table, text, count) {
  const rows = [...table.rows].slice(1), wanted = text.trim().toLowerCase();
  for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  const shown = rows.filter(row => !row.hidden).length;
  count.textContent = wanted ? `${shown} of ${rows.length}` : "";
}

for (const table of document.querySelectorAll("div.table table")) {
  [...table.rows[0].cells].forEach((heading, column) => {
    if (heading.tagName !== "TH") return;
    const button = document.createElement("button");
    button.textContent = heading.textContent;
    button.title = "sort";
    button.addEventListener("click", () => sort(table, column, heading));
    heading.replaceChildren(button);
  });
  if (table.rows.length - 1 <= MANY) continue;
  const label = document.createElement("label"), box = document.createElement("input");
  const count = document.createElement("span");
  label.className = "filter";
  box.type = "search";
  box.addEventListener("input", () => filter(table, box.value, count));
  label.append("rows with ", box, " ", count);
  table.parentNode.before(label);
}
