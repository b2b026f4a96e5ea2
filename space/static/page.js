/* What Gradio's components leave out for keyboards and screen readers. */
() => {
  const announced = ["answer", "disagreement", "batch-progress", "feedback-thanks"];
  const announce = () => announced.forEach((id) => {
    const part = document.getElementById(id);
    if (part && !part.hasAttribute("aria-live")) part.setAttribute("aria-live", "polite");
  });
  const language = () => {
    const button = document.getElementById("language");
    if (!button) return;
    const isChinese = button.textContent.trim() === "English";
    const [own, other] = isChinese ? ["zh-CN", "en"] : ["en", "zh-CN"];
    if (document.documentElement.lang !== own) document.documentElement.lang = own;
    if (button.lang !== other) button.lang = other;
  };
  const scrollable = () => document.querySelectorAll("#model-card table:not([tabindex])").forEach((table) => {
    table.tabIndex = 0;
  });
  const answered = () => document.getElementById("answer")?.innerText ?? "";
  let before = null; // what stood there when somebody asked; null: nobody waits
  document.addEventListener("click", (event) => {
    if (event.target.closest?.("#classify-button, #examples")) before = answered();
  });
  const showAnswer = () => { // on a phone it stands a screen further down
    if (before === null || window.innerWidth > 640 || answered() === before || !answered()) return;
    before = null;
    const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    document.getElementById("answer").scrollIntoView({ behavior: isCalm ? "auto" : "smooth", block: "start" });
  };
  const tend = () => { announce(); language(); scrollable(); showAnswer(); };
  new MutationObserver(tend).observe(document.body, { childList: true, subtree: true, characterData: true });
  tend();
  const places = {
    ArrowLeft: (place, count) => (place + count - 1) % count, ArrowRight: (place, count) => (place + 1) % count,
    Home: () => 0, End: (place, count) => count - 1,
  };
  document.addEventListener("keydown", (event) => {
    const tab = event.key in places && event.target.closest && event.target.closest("[role=tab]");
    if (!tab) return;
    const tabs = [...tab.closest("[role=tablist]").querySelectorAll("[role=tab]")];
    const next = tabs[places[event.key](tabs.indexOf(tab), tabs.length)];
    event.preventDefault();
    next.focus();
    next.click();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    const tab = event.target.closest && event.target.closest("#tab-try");
    if (tab) { event.preventDefault(); event.stopPropagation(); document.getElementById("classify-button").click(); }
  }, true);
}
