// Before the first paint: the theme that was chosen here. Without a choice it is the system's, which CSS knows.
const chosen = localStorage.getItem("theme");
if (chosen) document.documentElement.dataset.theme = chosen;
