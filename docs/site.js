"use strict";
// The theme makes a navigation for each block of code, all without a name, and boxes that only a mouse can scroll.
function name() {
  document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])").forEach(box => box.setAttribute("tabindex", "0"));
  document.querySelectorAll("nav.md-code__nav:not([aria-label])").forEach(nav => {
    nav.setAttribute("aria-label", `code block ${[...document.querySelectorAll("nav.md-code__nav")].indexOf(nav) + 1}`);
  });
}
new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
name();
