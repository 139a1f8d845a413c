// What scrolls sideways is reached with the keyboard, also where the theme makes it later or takes it for a phone.
function makeReachable() {
  for (const box of document.querySelectorAll(":is(pre > code, .md-typeset__scrollwrap, p:has(> img:only-child)):not([tabindex])")) box.tabIndex = 0;
}
new MutationObserver(makeReachable).observe(document.body, { subtree: true, childList: true, attributeFilter: ["tabindex"] });
makeReachable();
document.querySelector(".md-search").setAttribute("aria-label", "Search");
for (const code of document.querySelectorAll(".language-bash code")) {
  code.innerHTML = code.innerHTML.replace(/--\w+/g, '<span class="option">$&</span>');
}
