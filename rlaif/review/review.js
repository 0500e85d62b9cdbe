// The page of `rlaif review`. Model text is only ever set as text (textContent), never as HTML.
"use strict";

const at = (id) => document.getElementById(id);
const filters = at("filters");
let shown = null; // the comparison on the page
let queue = Promise.resolve(); // one thing at a time, in the order of the keys

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function fill(node, ...children) {
  node.replaceChildren(...children.filter(Boolean));
  return node;
}

// ------------------------------------------------------------------------------------------------------- requests

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
  };
  let reply;
  try {
    reply = await fetch(path, options);
  } catch {
    throw new Error("The server is gone; run `rlaif review` again. Votes so far are stored.");
  }
  if (!reply.ok) {
    const told = reply.headers.get("content-type") === "application/json" ? (await reply.json()).error : await reply.text();
    throw new Error(told);
  }
  return reply.json();
}

function alone(work) {
  queue = queue.then(async () => {
    try {
      await work();
      at("message").hidden = true;
    } catch (error) {
      at("message").textContent = error.message;
      at("message").hidden = false;
    }
  });
}

// A vote is on what was on the page when the key was pressed, or it is none.
const on = (said) => {
  const meant = shown && shown.key;
  return () => (shown && shown.key === meant ? vote(said) : undefined);
};

function query(more) {
  const asked = new URLSearchParams(new FormData(filters));
  for (const [name, value] of Object.entries(more)) asked.set(name, value);
  return asked.toString();
}

async function move(more) {
  const found = await ask("next?" + query(more));
  figures(found);
  if (found.key === null && "back" in more) return;
  show(found.key === null ? null : await ask("comparison/" + found.key));
}

const next = () => move({ after: shown ? shown.key : "" });
const back = () => move({ after: shown ? shown.key : "~", back: "1" });

async function vote(said) {
  const voted = await ask("vote", { key: shown.key, vote: said });
  if (said === "skip") return next();
  show(voted);
  figures(await ask("next?" + query({ after: shown.key })));
}

async function undo() {
  const { key } = await ask("undo", {});
  if (key === null) throw new Error("There is no vote of yours to take back.");
  show(await ask("comparison/" + key));
  figures(await ask("next?" + query({ after: key })));
}

// ------------------------------------------------------------------------------------------------------- showing

const percent = (p) => (p === null || p === undefined ? "–" : (100 * p).toFixed(0) + " %");
const decimal = (x) => (x === null || x === undefined ? "–" : x.toFixed(2));

function estimate(node, text, low, high, ends) {
  fill(node, document.createTextNode(text + " "));
  if (low !== null && low !== undefined) node.append(make("small", "", `(${ends(low)} to ${ends(high)})`));
}

function figures(found) {
  const { you, all } = found.figures;
  at("progress").textContent = `${found.done} of ${found.within}`;
  estimate(at("rate"), percent(you.rate), you.rate_low, you.rate_high, percent);
  estimate(at("kappa"), decimal(you.kappa), you.kappa_low, you.kappa_high, decimal);
  const bar = at("rate-bar").style; // the interval
  bar.left = `${100 * (you.rate_low ?? 0)}%`;
  bar.width = `${Math.max(100 * ((you.rate_high ?? 0) - (you.rate_low ?? 0)), you.votes ? 2 : 0)}%`;
  at("people").hidden = !all;
  if (all) {
    at("people-name").textContent = `all ${all.reviewers} reviewers`;
    fill(at("people-value"), document.createTextNode(percent(all.rate) + " "), make("small", "", `alpha ${decimal(all.alpha)}`));
  }
}

const WORDS = { left: "left", right: "right", tie: "tie", both_bad: "both bad", skip: "skipped", invalid: "no verdict" };

function show(comparison) {
  const same = shown && comparison && shown.key === comparison.key;
  shown = comparison;
  at("comparison").hidden = !comparison;
  at("empty").hidden = Boolean(comparison);
  const voted = comparison && comparison.vote && comparison.vote !== "skip";
  for (const button of document.querySelectorAll("[data-vote]")) button.disabled = !comparison || voted;
  if (!comparison) return;
  fill(at("prompt"), ...comparison.prompt.map(turn));
  fill(at("questions"), ...comparison.questions.map((q) => make("span", "", q)));
  at("questions").hidden = comparison.questions.length === 0;
  for (const side of ["left", "right"]) {
    const card = at(side), text = card.querySelector(".text");
    text.textContent = comparison[side];
    card.classList.toggle("picked", comparison.vote === side);
    fill(card.querySelector(".tags"), ...tags(comparison, side));
    if (!same) text.scrollTop = 0;
  }
  at("comparison").classList.toggle("open", Boolean(comparison.revealed));
  at("verdict").hidden = at("revealed").hidden = !comparison.revealed;
  fill(at("verdict"), ...(comparison.revealed ? verdict(comparison) : []));
  fill(at("revealed"), ...(comparison.revealed ? reveal(comparison) : []));
  document.querySelector("[data-vote=reveal]").disabled = Boolean(comparison.revealed);
  if (!same) at("comparison").scrollTop = 0;
}

function turn(message) {
  const node = make("div", "turn");
  node.dir = "auto";
  node.append(make("span", "role", message.role), document.createTextNode(message.content));
  return node;
}

function tags(comparison, side) {
  const { revealed } = comparison;
  return [
    comparison.vote === side && make("span", "tag own", "your vote"),
    revealed && make("span", "tag", revealed.models[side] || "unknown model"),
    revealed && revealed.chosen && make("span", "tag", revealed.chosen === side ? "chosen" : "rejected"),
  ];
}

function reveal(comparison) {
  const { revealed } = comparison;
  return [fate(comparison), others(revealed), judgements(revealed), ...evidence(revealed)];
}

function verdict({ vote: own, revealed }) {
  if (revealed.judge === null) return [make("span", "", "No judge has answered about these two.")];
  const agrees = (own === "both_bad" ? "tie" : own) === revealed.judge;
  let told = WORDS[revealed.judge];
  if (revealed.p_left !== null) told += `, probability that left is better ${decimal(revealed.p_left)}`;
  if (revealed.opposed) told += "; it chose differently in its two orders";
  if (revealed.split) told += "; the judges disagree";
  const opening = !own || own === "skip" ? make("span", "", "The judge: ")
    : agrees ? make("span", "agree", "You agree with the judge: ") : make("span", "differ", "You differ from the judge: ");
  return [opening, make("span", "", told)];
}

function fate({ blind, vote: own, revealed }) {
  const pair = revealed.outcome === "pair";
  let text = pair ? `In the data as a pair (source ${revealed.source}, probability of chosen ${decimal(revealed.prob_chosen)}).`
    : `Not in the data: ${revealed.outcome.replaceAll("_", " ")}.`;
  if (own && own !== "skip") text += " The next run takes your vote instead.";
  if (own && own !== "skip" && !blind) text += " It was cast after the reveal, so it does not count in the agreement.";
  return make("p", "line soft", text);
}

function others(revealed) {
  if (!revealed.others.length) return null;
  const said = revealed.others.map((o) => `${o.reviewer}: ${WORDS[o.vote]}${o.blind ? "" : " (not blind)"}`);
  return make("p", "line", "Other reviewers: " + said.join("; "));
}

function judgements(revealed) {
  if (!revealed.judgements.length) return null;
  const table = make("table"), head = make("tr");
  for (const name of ["judge", "principle", "shown first", "verdict", "p(left)", "read from"]) head.append(make("th", "", name));
  table.append(head);
  for (const j of revealed.judgements) {
    const row = make("tr");
    const how = j.method ? j.method + (j.label_mass === null ? "" : `, label mass ${decimal(j.label_mass)}`) : "";
    const scores = j.scores ? ` (${decimal(j.scores.left)} : ${decimal(j.scores.right)})` : "";
    const why = j.reason ? `: ${j.reason}` : "";
    for (const cell of [j.judge, j.principles.join(", "), j.first ?? "–", WORDS[j.said] + scores + why, decimal(j.p_left), how]) row.append(make("td", "", cell));
    table.append(row);
  }
  return table;
}

function evidence(revealed) {
  const made = [];
  for (const j of revealed.judgements) {
    const told = j.rationale || j.detail;
    if (told) {
      const block = make("details");
      block.open = Boolean(j.rationale);
      const order = j.first ? `, ${j.first} shown first` : "";
      block.append(make("summary", "", `${j.rationale ? "Rationale" : "Detail"} of ${j.judge}${order}`), make("div", "said", told));
      made.push(block);
    }
  }
  for (const j of revealed.judgements) {
    for (const e of j.evidence) {
      const block = make("details");
      block.append(make("summary", "", `Request and raw reply ${e.key.slice(0, 12)} (${j.judge}${j.first ? `, ${j.first} first` : ""})`));
      for (const message of e.asked) block.append(make("pre", "", `[${message.role}]\n${message.content}`));
      block.append(make("pre", "", e.reply ? e.reply.whole : "No reply is stored."));
      made.push(block);
    }
  }
  return made;
}

// ------------------------------------------------------------------------------------------------------- keys

const KEYS = {
  1: "left", 2: "right", 3: "tie", t: "tie", 4: "both_bad", b: "both_bad", s: "skip", e: "reveal",
  u: undo, Enter: next, " ": next, n: next, ArrowRight: next, ArrowLeft: back,
};

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea");
  const pressing = event.target.closest("button, summary") && (event.key === "Enter" || event.key === " ");
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || typing || pressing) return;
  const act = KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  alone(typeof act === "string" ? on(act) : act);
});

at("votes").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  button.blur(); // or Enter would press it again
  alone(button.dataset.vote ? on(button.dataset.vote) : { back, undo, next }[button.dataset.act]);
});

filters.addEventListener("change", (event) => {
  event.target.blur(); // the keys vote again
  alone(() => move({ after: "" }));
});
filters.addEventListener("submit", (event) => event.preventDefault());

alone(next);
