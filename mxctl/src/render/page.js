"use strict";
// Draws the graph out of the data. Every name came from the network: it becomes text, never markup.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const EVERY = 2000;
  // How far a drawing may shrink before another is taken.
  const LEGIBLE = 0.75;
  const byId = (id) => document.getElementById(id);
  let data = null;
  let chosen = null;
  let shown = null;
  let zoom = 1;

  const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
  const fill = (element, attributes, children) => {
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  const key = (workload) => `${workload.kind === "unknown"} ${workload.name}`;

  function show() {
    const { graph, drawn } = data;
    byId("status").textContent =
      `${graph.workloads.length} workloads, ${graph.edges.length} edges of ${graph.entries} entries` +
      (graph.reading === "skywalking" ? ", as SkyWalking reads them" : "");
    byId("graph").replaceChildren(picture(graph, drawn));
    byId("edges").replaceChildren(...edgeRows(graph, drawn));
    byId("connections").replaceChildren(...connectionRows(graph, drawn));
    byId("notes").replaceChildren(...graph.notes.map((note) => make("li", {}, `${note.count} x ${note.note}`)));
    details();
  }

  function picture(graph, drawn) {
    const tip = (id) => draw("marker", { id, viewBox: "0 0 8 8", refX: 8, refY: 4, markerWidth: 8, markerHeight: 8,
      orient: "auto", markerUnits: "userSpaceOnUse" }, draw("path", { d: "M0,0L8,4L0,8Z" }));
    // As much of the window as it fills, without being cut. Zoomed in, it scrolls.
    const room = byId("graph").clientWidth;
    const scale = (layout) => Math.min(1, room / layout.width);
    const largest = (best, other) => (scale(other) > scale(best) ? other : best);
    const layout = drawn.layouts.find((one) => scale(one) >= LEGIBLE) || drawn.layouts.reduce(largest);
    const svg = draw("svg", { viewBox: `0 0 ${layout.width} ${layout.height}`,
      width: Math.floor(layout.width * scale(layout) * zoom), class: zoom > 1 ? "" : "fit" },
      draw("defs", {}, tip("tip"), tip("failing-tip")));
    drawn.edges.forEach((edge, number) => {
      const line = layout.edges[number];
      const group = draw("g", { class: edge.failing ? "edge failing" : "edge" }, draw("title", {}, edge.text),
        draw("path", { d: line.path, "marker-end": edge.failing ? "url(#failing-tip)" : "url(#tip)" }));
      if (line.label) group.append(draw("text", { x: line.label[0], y: line.label[1] }, edge.text));
      svg.append(group);
    });
    graph.workloads.forEach((workload, number) => {
      const box = drawn.workloads[number];
      const isChosen = chosen === key(workload) ? " chosen" : "";
      const group = draw("g", { class: `workload ${box.class}${isChosen}`, tabindex: 0, role: "button",
        transform: `translate(${layout.workloads[number].join(",")})` },
        draw("title", {}, workload.name), draw("path", { d: box.outline }),
        draw("text", { y: -3 }, box.short), draw("text", { y: 13, class: "kind" }, box.kind));
      const choose = () => { chosen = key(workload); show(); };
      group.addEventListener("click", choose);
      group.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(); });
      svg.append(group);
    });
    return svg;
  }

  const figure = (tally, name) => (tally ? String(tally[name]) : "-");
  const milliseconds = (tally, name) => (tally && tally.latency_ms ? tally.latency_ms[name].toFixed(2) : "-");

  const row = (tag, texts) =>
    make("tr", {}, ...texts.map((text, column) => make(tag, column > 2 ? { class: "figure" } : {}, text)));

  function connectionRows(graph, drawn) {
    const head = ["caller", "callee", "seen by", "protocol", "connections", "open", "errors", "received", "sent"];
    const rows = [];
    graph.edges.forEach((edge, number) => {
      const { seen_by: seenBy, connections } = drawn.edges[number];
      if (!connections) return;
      if (!rows.length) rows.push(row("th", head));
      rows.push(row("td", [graph.workloads[edge.from].name, graph.workloads[edge.to].name, seenBy, ...connections]));
    });
    return rows;
  }

  function edgeRows(graph, drawn) {
    const head = ["caller", "callee", "seen by", "calls", "errors", "4xx", "p50 ms", "p90 ms", "p99 ms"];
    const rows = [row("th", head)];
    graph.edges.forEach((edge, number) => {
      if (!drawn.edges[number].requests) return;
      const { client, server } = edge;
      const sides = (name) => (client && server && client[name] !== server[name]
        ? `${figure(client, name)} / ${figure(server, name)}` : figure(client || server, name));
      const main = client && server && server.calls > client.calls ? server : client || server;
      const texts = [graph.workloads[edge.from].name, graph.workloads[edge.to].name, drawn.edges[number].seen_by,
        sides("calls"), sides("errors"), sides("client_errors"),
        milliseconds(main, "p50"), milliseconds(main, "p90"), milliseconds(main, "p99")];
      rows.push(row("td", texts));
    });
    return rows;
  }

  function details() {
    const { graph, drawn } = data;
    const number = graph.workloads.findIndex((workload) => key(workload) === chosen);
    if (number < 0) return;
    const workload = graph.workloads[number];
    const parts = [make("h2", { id: "name" }, workload.name), make("p", {}, drawn.workloads[number].kind)];
    for (const instance of workload.instances) {
      const rows = [["instance", `${instance.name} (${instance.kind})`]];
      if (instance.id) rows.push(["id", instance.id]);
      for (const [name, value] of Object.entries(instance.metadata)) {
        const isMap = value !== null && typeof value === "object" && !Array.isArray(value);
        const text = isMap ? Object.entries(value).map((pair) => pair.join("=")).join("\n") : String(value);
        rows.push([name, ...text.split("\n")]);
      }
      parts.push(make("table", { class: "metadata" }, ...rows.map(([name, ...lines]) =>
        make("tr", {}, make("th", {}, name), make("td", {}, ...lines.map((line) => make("div", {}, line)))))));
    }
    if (workload.further_instances) parts.push(make("p", {}, "and further instances"));
    for (const [title, end] of [["Called by", "to"], ["Calls", "from"]]) {
      const lines = graph.edges.map((edge, at) => [edge, drawn.edges[at]]).filter(([edge]) => edge[end] === number);
      const other = end === "to" ? "from" : "to";
      if (lines.length) parts.push(make("h2", {}, title), make("ul", { class: `edges-${end}` }, ...lines.map(
        ([edge, line]) => make("li", {}, `${graph.workloads[edge[other]].name}: ${line.text}, seen by ${line.seen_by}`))));
    }
    byId("details").replaceChildren(...parts);
  }

  async function follow() {
    try {
      const reply = await fetch("topology.json", { cache: "no-store" });
      if (!reply.ok) throw new Error(`status ${reply.status}`);
      const text = await reply.text();
      // What has not changed keeps its focus and its selection.
      if (text !== shown) {
        data = JSON.parse(text);
        show();
        shown = text;
      }
    } catch (error) {
      shown = null;
      byId("status").textContent = `not live: ${error.message}`;
    }
    setTimeout(follow, EVERY);
  }

  const redraw = () => { if (data) byId("graph").replaceChildren(picture(data.graph, data.drawn)); };
  for (const [id, next] of [["smaller", () => zoom / 1.5], ["fit", () => 1], ["larger", () => zoom * 1.5]]) {
    byId(id).addEventListener("click", () => { zoom = Math.min(Math.max(next(), 0.2), 20); redraw(); });
  }
  addEventListener("resize", redraw);

  if (document.documentElement.dataset.live === "true") {
    follow();
  } else {
    data = JSON.parse(byId("data").textContent);
    show();
  }
})();
