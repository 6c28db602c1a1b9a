// Draws the report. Python writes plain arrays into the page (see report.py); everything that is drawn is decided here.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const KINDS = { f4: Float32Array, u1: Uint8Array, u2: Uint16Array, u4: Uint32Array };
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const byId = (id) => document.getElementById(id);

  // Arrays travel as base64 of their little-endian bytes.
  function decode(array) {
    const text = atob(array.bytes);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return new KINDS[array.dtype](bytes.buffer);
  }
  const columns = (flat, width, Kind = Float32Array) =>
    Array.from({ length: width }, (_, k) => Kind.from({ length: flat.length / width }, (_, i) => flat[i * width + k]));
  const cssColors = (flat) =>
    Array.from({ length: flat.length / 3 }, (_, i) => `rgb(${flat[3 * i]},${flat[3 * i + 1]},${flat[3 * i + 2]})`);

  const cloud = (scene) => ({
    ...scene,
    xyz: columns(decode(scene.points), 3),
    natural: cssColors(decode(scene.natural)),
    pca: cssColors(decode(scene.pca)),
    kept: scene.kept && cssColors(decode(scene.kept)),
  });
  const scenes = { demo: cloud(data.demo), target: cloud(data.target) };
  const mesh = {
    vertices: decode(data.hand.vertices),
    link: decode(data.hand.link),
    faces: columns(decode(data.hand.faces), 3, Uint32Array),
    arm: columns(decode(data.hand.arm), 3, Uint32Array),
  };

  // One pose is 12 numbers a link: the upper three rows of T_world_link.
  function poseHand(poses, step) {
    const links = data.hand.links;
    const n = mesh.link.length;
    const out = [new Float32Array(n), new Float32Array(n), new Float32Array(n)];
    for (let i = 0; i < n; i++) {
      const T = 12 * (step * links + mesh.link[i]);
      const x = mesh.vertices[3 * i], y = mesh.vertices[3 * i + 1], z = mesh.vertices[3 * i + 2];
      for (let row = 0; row < 3; row++) {
        const R = T + 4 * row;
        out[row][i] = poses[R] * x + poses[R + 1] * y + poses[R + 2] * z + poses[R + 3];
      }
    }
    return out;
  }

  const meshTrace = ([x, y, z], faces, opacity) => ({
    type: "mesh3d", x, y, z, i: faces[0], j: faces[1], k: faces[2], color: css("hand"), opacity, hoverinfo: "skip", lighting: { ambient: 0.55, diffuse: 0.75, specular: 0.15, roughness: 0.7, fresnel: 0.1 },
    lightposition: { x: 3000, y: -2000, z: 9000 },
  });
  // The hand proper, and behind it faintly whatever reaches far beyond the palm, such as a forearm.
  const handTraces = (vertices, opacity) => [
    { ...meshTrace(vertices, mesh.faces, opacity), visible: opacity > 0 },
    { ...meshTrace(vertices, mesh.arm, Math.min(0.07, 0.3 * opacity)), visible: opacity > 0 && mesh.arm[0].length > 0 },
  ];
  const cloudTrace = (scene, color, extra) => ({
    type: "scatter3d", mode: "markers", x: scene.xyz[0], y: scene.xyz[1], z: scene.xyz[2], hoverinfo: "skip",
    marker: { size: 3.4, color, line: { width: 0 }, ...extra },
  });
  function tableTrace(scene) {
    if (!scene.table) return [];
    const [x, y, z] = columns(decode(scene.table), 3);
    return [{ type: "mesh3d", x, y, z, i: [0, 0], j: [1, 2], k: [2, 3], color: css("table"), opacity: 1, hoverinfo: "skip",
      lighting: { ambient: 1, diffuse: 0, specular: 0 } }];
  }
  const lineTrace = ([x, y, z], color, width) => ({ type: "scatter3d", mode: "lines", x, y, z, hoverinfo: "skip", line: { color, width } });

  // Axis ranges are fixed, so that nothing jumps when the hand moves; the camera is given in metres.
  function layout3d(scene) {
    const size = [0, 1, 2].map((k) => scene.box[1][k] - scene.box[0][k]);
    const unit = Math.hypot(...size);
    const inBox = (place) => [0, 1, 2].map((k) => (place[k] - (scene.box[0][k] + scene.box[1][k]) / 2) / unit);
    const axis = (k) => ({ visible: false, range: [scene.box[0][k], scene.box[1][k]] });
    const vector = (v) => ({ x: v[0], y: v[1], z: v[2] });
    return {
      margin: { l: 0, r: 0, t: 0, b: 0 }, paper_bgcolor: "rgba(0,0,0,0)", showlegend: false, uirevision: "keep",
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("muted"), activecolor: css("accent") },
      scene: {
        xaxis: axis(0), yaxis: axis(1), zaxis: axis(2), bgcolor: "rgba(0,0,0,0)", dragmode: "turntable",
        aspectmode: "manual", aspectratio: vector(size.map((s) => s / unit)),
        camera: { eye: vector(inBox(scene.eye)), center: vector(inBox(scene.center)), up: { x: 0, y: 0, z: 1 } },
      },
    };
  }
  function layout2d(extra) {
    const axis = { gridcolor: css("line"), linecolor: css("line"), zeroline: false, ticks: "", automargin: true };
    const { xaxis, yaxis, ...rest } = extra;
    return {
      margin: { l: 56, r: 12, t: 10, b: 44 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: css("text") },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("muted"), activecolor: css("accent") },
      xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
    };
  }
  const CONFIG = {
    displaylogo: false, responsive: true, displayModeBar: "hover",
    modeBarButtons: [["toImage", "resetCameraDefault3d"]],
  };
  const CONFIG2D = { ...CONFIG, modeBarButtons: [["toImage", "resetScale2d"]] };

  function pressed(container, chosen) {
    for (const button of container.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button === chosen));
  }
  function choice(id, onChoose) {
    const container = byId(id);
    for (const button of container.querySelectorAll("button"))
      button.addEventListener("click", () => { pressed(container, button); onChoose(button.value); });
  }

  // ---- the two scenes ------------------------------------------------------------------------------------------------
  const sceneState = { color: "natural", hand: "1" };
  function drawScene(which) {
    const scene = scenes[which];
    const hand = handTraces(poseHand(decode(scene.pose), 0), Number(sceneState.hand));
    const traces = [cloudTrace(scene, scene[sceneState.color]), ...tableTrace(scene), ...hand];
    return Plotly.react(byId("scene-" + which), traces, layout3d(scene), CONFIG);
  }
  function drawScenes() { return Promise.all([drawScene("demo"), drawScene("target")]); }

  // ---- attention -----------------------------------------------------------------------------------------------------
  const attentionState = { index: 0, hand: "0.14" };
  const attentionScale = () => [[0, css("low")], [0.34, css("low")], [0.55, "#f2c14e"], [0.78, "#ee6c2f"], [1, "#b0171f"]];
  function drawAttention() {
    return Promise.all(["demo", "target"].map((which) => {
      const scene = scenes[which];
      const { label, points, weights } = data.attention[attentionState.index][which];
      const ratio = decode(weights);
      const others = columns(decode(data.attention_points[which]), 3);
      const marked = points.map((value) => [value]);
      const size = Float32Array.from(ratio, (value) => 3.2 + 1.6 * Math.max(0, value));
      const text = Array.from(ratio, (value) => (10 ** value).toPrecision(2) + " × average");
      const traces = [
        { ...cloudTrace(scene, ratio, { size, colorscale: attentionScale(), cmin: -1, cmax: 2 }), text, hoverinfo: "text" },
        ...tableTrace(scene),
        { type: "scatter3d", mode: "markers", x: others[0], y: others[1], z: others[2], hoverinfo: "skip",
          marker: { size: 5, color: css("hand"), line: { color: css("card"), width: 1 } } },
        { type: "scatter3d", mode: "markers", x: marked[0], y: marked[1], z: marked[2], hovertext: label, hoverinfo: "text",
          marker: { size: 9, symbol: "diamond", color: css("path"), line: { color: css("text"), width: 2 } } },
        ...handTraces(poseHand(decode(scene.pose), 0), Number(attentionState.hand)),
      ];
      return Plotly.react(byId("attention-" + which), traces, layout3d(scene), CONFIG);
    }));
  }

  // ---- energy sections -----------------------------------------------------------------------------------------------
  function drawSection(index) {
    const section = data.sections[index];
    const across = decode(section.across), up = decode(section.up), values = decode(section.values);
    const z = Array.from({ length: up.length }, (_, row) => values.subarray(row * across.length, (row + 1) * across.length));
    const near = columns(decode(section.near), 2), beside = columns(decode(section.beside), 2);
    const cm = (array) => Float32Array.from(array, (value) => 100 * value);
    const traces = [
      { type: "heatmap", x: cm(across), y: cm(up), z, zmin: 0, zmax: 1, colorscale: "Viridis", reversescale: true, zsmooth: "best",
        showscale: false, hovertemplate: "%{x:.0f}, %{y:.0f} cm<br>energy %{z:.2f}<extra></extra>" },
      { type: "scatter", mode: "markers", x: cm(beside[0]), y: cm(beside[1]), hoverinfo: "skip",
        marker: { size: 3.5, color: "rgba(255,255,255,.4)" } },
      { type: "scatter", mode: "markers", x: cm(near[0]), y: cm(near[1]), hoverinfo: "skip",
        marker: { size: 4.5, color: "rgba(255,255,255,.9)", line: { width: 0.8, color: "rgba(20,20,20,.75)" } } },
      { type: "scatter", mode: "markers", x: [100 * section.lowest[0]], y: [100 * section.lowest[1]], hovertext: "lowest energy here",
        hoverinfo: "text", marker: { size: 15, symbol: "circle-open", color: "#b0171f", line: { width: 3 } } },
      { type: "scatter", mode: "markers", x: [0], y: [0], hovertext: "the palm at the end", hoverinfo: "text",
        marker: { size: 13, symbol: "x", color: "#2b6cb0", line: { color: "#ffffff", width: 1.5 } } },
    ];
    return Plotly.react(byId("section-" + index), traces, layout2d({
      showlegend: false, margin: { l: 52, r: 8, t: 6, b: 42 },
      xaxis: { title: { text: section.across_label }, range: [100 * across[0], 100 * across.at(-1)], showgrid: false, constrain: "domain" },
      yaxis: { title: { text: section.up_label }, range: [100 * up[0], 100 * up.at(-1)], showgrid: false, scaleanchor: "x", constrain: "domain" },
    }), CONFIG2D);
  }

  // ---- the path ------------------------------------------------------------------------------------------------------
  const path = data.path && { ...data.path, poses: decode(data.path.poses), palm: columns(decode(data.path.palm), 3) };
  let shownStep = path ? path.steps.length - 1 : 0;
  let pathPending = null;
  function drawPath() {
    const scene = scenes.target;
    const traces = [
      ...handTraces(poseHand(path.poses, shownStep), 1),
      cloudTrace(scene, scene.natural),
      lineTrace(path.palm, css("path"), 7),
      ...tableTrace(scene),
      meshTrace(poseHand(path.poses, 0), mesh.faces, 0.14),
    ];
    return Plotly.react(byId("path-plot"), traces, layout3d(path), CONFIG);
  }
  function tellStep() {
    byId("path-step").value = `step ${path.steps[shownStep]} of ${path.steps.at(-1)} · energy ${path.energy[shownStep].toPrecision(4)}`;
  }
  function moveTo(step) {
    shownStep = Math.min(Math.max(0, step), path.steps.length - 1);
    byId("path-slider").value = shownStep;
    tellStep();
    const plot = byId("path-plot");
    if (!plot.data || pathPending !== null) return;  // one redraw per picture is enough, however fast the slider moves
    pathPending = requestAnimationFrame(() => {
      pathPending = null;
      const [x, y, z] = poseHand(path.poses, shownStep);
      Plotly.restyle(plot, { x: [x, x], y: [y, y], z: [z, z] }, [0, 1]);
    });
  }
  function player(button, slider, count, move, interval) {
    let timer = null;
    const stop = () => { clearInterval(timer); timer = null; button.textContent = "Play"; };
    button.addEventListener("click", () => {
      if (timer !== null) return stop();
      button.textContent = "Pause";
      let step = Number(slider.value) >= count - 1 ? -1 : Number(slider.value);
      timer = setInterval(() => { step += 1; move(step); if (step >= count - 1) stop(); }, interval);
    });
    slider.addEventListener("input", () => { stop(); move(Number(slider.value)); });
  }

  // ---- energy --------------------------------------------------------------------------------------------------------
  const LINES = ["#1c2430", "#2c6cb0", "#d1642b", "#9467d8", "#1f9d55", "#b8871b", "#c2458f"];
  const energyState = { axis: "log" };
  function drawEnergy() {
    const energy = data.energy;
    const steps = decode(energy.steps);
    const dark = css("page") === "#14181e";
    const traces = energy.lines.map((line, k) => {
      const y = Array.from(decode(line.values), (value) => (energyState.axis === "log" && value < energy.floor ? null : value));
      const color = k === 0 ? css("text") : dark && k === 1 ? css("accent") : LINES[k % LINES.length];
      return { type: "scatter", mode: "lines", name: line.name, x: steps, y, line: { color, width: k === 0 ? 3 : 1.8, dash: ["solid", "solid", "dash", "dot", "dashdot", "longdash"][k % 6] } };
    });
    const shapes = energy.rounds.slice(1).map((round) => ({ type: "line", x0: round.step, x1: round.step, yref: "paper", y0: 0, y1: 1, line: { color: css("line"), width: 1.5 } }));
    const annotations = energy.rounds.map((round) => ({ x: round.step, xanchor: "left", yref: "paper", y: 1, yanchor: "bottom", text: `${round.starts} starts`, showarrow: false, font: { color: css("muted"), size: 12 } }));
    return Plotly.react(byId("energy-terms"), traces, layout2d({
      shapes, annotations, legend: { orientation: "h", y: -0.2, yanchor: "top" }, hovermode: "x unified", margin: { l: 62, r: 12, t: 26, b: 90 },
      hoverlabel: { bgcolor: css("card"), font: { color: css("text") } },
      xaxis: { title: { text: "optimizer step", standoff: 6 } },
      yaxis: { title: { text: "energy" }, type: energyState.axis, exponentformat: "power", ...(energyState.axis === "log" ? { dtick: 1 } : { rangemode: "tozero" }) },
    }), CONFIG2D);
  }
  function drawStarts() {
    const groups = data.energy.starts;
    const colors = [css("low"), "#cc9f3d", css("accent")];
    const traces = groups.map((group, k) => ({
      type: "scatter", mode: "markers", name: group.name, x: group.rank, y: group.energy,
      hovertemplate: "start %{customdata}<br>energy %{y:.4f}<extra></extra>", customdata: group.start,
      marker: group.winner ? { size: 15, symbol: "star", color: css("path") } : { size: 8, color: colors[Math.min(2, k + 3 - groups.filter((g) => !g.winner).length)], line: { width: 1, color: css("muted") } },
    }));
    return Plotly.react(byId("energy-starts"), traces, layout2d({
      legend: { orientation: "h", y: -0.2, yanchor: "top" }, margin: { l: 62, r: 12, t: 26, b: 90 },
      xaxis: { title: { text: "starts, from best to worst", standoff: 6 }, showgrid: false },
      yaxis: { title: { text: "last energy" } },
    }), CONFIG2D);
  }

  // ---- physics film --------------------------------------------------------------------------------------------------
  function showFrame(index) {
    byId("film-image").src = data.frames[index];
    byId("film-slider").value = index;
    byId("film-step").value = `picture ${index + 1} of ${data.frames.length}`;
  }

  // Pictures are drawn when they come near the window: the page opens at once, and no more is drawn than is looked at.
  const drawers = new Map();
  const drawn = new Set();
  function whenNear(id, draw) {
    const element = byId(id);
    if (element) drawers.set(element, draw);
  }
  whenNear("scene-demo", drawScenes);
  whenNear("attention-demo", drawAttention);
  (data.sections || []).forEach((_, index) => whenNear("section-" + index, () => drawSection(index)));
  whenNear("path-plot", drawPath);
  whenNear("energy-terms", drawEnergy);
  whenNear("energy-starts", drawStarts);
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting || drawn.has(entry.target)) continue;
      drawn.add(entry.target);
      drawers.get(entry.target)();
    }
  }, { rootMargin: "400px" });
  for (const element of drawers.keys()) observer.observe(element);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { for (const element of drawn) drawers.get(element)(); });

  choice("scene-colors", (value) => { sceneState.color = value; drawScenes(); });
  choice("scene-hand", (value) => { sceneState.hand = value; drawScenes(); });
  if (data.attention.length) {
    choice("attention-points", (value) => { attentionState.index = Number(value); drawAttention(); });
    choice("attention-hand", (value) => { attentionState.hand = value; drawAttention(); });
  }
  if (data.energy) choice("energy-axis", (value) => { energyState.axis = value; drawEnergy(); });
  if (path) { player(byId("path-play"), byId("path-slider"), path.steps.length, moveTo, 140); moveTo(shownStep); }
  if (data.frames.length) { player(byId("film-play"), byId("film-slider"), data.frames.length, showFrame, 120); showFrame(0); }

  // report.html#step=5 opens the path at its fifth recorded step, for links and for checks.
  const wanted = /step=(\d+)/.exec(location.hash);
  if (path && wanted) moveTo(Number(wanted[1]));
})();
