"use strict";
const body = document.querySelector("#results tbody");
document.querySelectorAll("#results th button").forEach((button, _, all) => {
  const column = button.closest("th").cellIndex;
  button.addEventListener("click", () => {
    const up = button.dataset.order !== "up";
    all.forEach((other) => delete other.dataset.order);
    button.dataset.order = up ? "up" : "down";
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const compare = (a, b) => {
      const [first, second] = [key(a), key(b)];
      if (first === "" || second === "") return Number(first === "") - Number(second === ""); // nothing comes last
      const difference = first - second;
      return (up ? 1 : -1) * (Number.isNaN(difference) ? first.localeCompare(second) : difference);
    };
    body.append(...[...body.rows].sort(compare));
  });
});
