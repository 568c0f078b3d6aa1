async (times) => {
  for (let n = 0; n < times; n++) {
    const chat = document.createElement("skill-chat");
    chat.setAttribute("skill", "help");
    chat.setAttribute("open", "");
    document.body.append(chat);
    await new Promise((done) => chat.addEventListener("skillchat:open", done));
    chat.remove();
    const floating = SkillChat("init", { skill: "floating" });
    SkillChat("open");
    await new Promise((done) => floating.addEventListener("skillchat:open", done));
    SkillChat("destroy");
  }
}
