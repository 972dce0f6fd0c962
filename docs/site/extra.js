// Wide tables scroll, and must by keyboard too. The theme wraps them when the page is ready.
window.addEventListener("load", () => document.querySelectorAll(".md-typeset__scrollwrap").forEach((one) => { one.tabIndex = 0; }));
