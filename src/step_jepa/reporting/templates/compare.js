"use strict";
(() => {
  const boxes = [...document.querySelectorAll("#groups input")];
  const show = (box) => document.querySelectorAll(`[data-group="${box.value}"]`).forEach((each) => each.classList.toggle("off", !box.checked));
  const showAll = (shown) => boxes.forEach((box) => { box.checked = shown; show(box); });
  boxes.forEach((box) => box.addEventListener("change", () => show(box)));
  document.getElementById("all").addEventListener("click", () => showAll(true));
  document.getElementById("none").addEventListener("click", () => showAll(false));
})();
