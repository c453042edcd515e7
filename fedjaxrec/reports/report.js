'use strict';

// Draws the figures of the page in the colours of its style sheet, and again
// when the reader's system changes between light and dark.
(function () {
  const figures = JSON.parse(document.getElementById('figures').textContent);

  function drawAll() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();

    function resolve(value) {
      if (typeof value === 'string') {
        const match = /^var\((--[a-z_]+)\)$/.exec(value);
        return match ? colour(match[1]) : value;
      }
      if (Array.isArray(value)) return value.map(resolve);
      if (value !== null && typeof value === 'object') {
        return Object.fromEntries(
            Object.entries(value).map(([key, inner]) => [key, resolve(inner)]));
      }
      return value;
    }

    function axis(own) {
      own = Object.assign({}, own);
      if (own.title) {
        own.title = {text: own.title.text, font: {size: 12.5}, standoff: 8};
      }
      return Object.assign({
        gridcolor: colour('--line'),
        linecolor: colour('--line'),
        zerolinecolor: colour('--line'),
        automargin: true,
        fixedrange: false,
      }, own);
    }

    for (const [id, figure] of Object.entries(figures)) {
      const layout = resolve(figure.layout);
      layout.title = {
        text: layout.title.text,
        font: {size: 14, color: colour('--text')},
        x: 0,
        xref: 'paper',
        xanchor: 'left',
      };
      layout.xaxis = axis(layout.xaxis);
      layout.yaxis = axis(layout.yaxis);
      Object.assign(layout, {
        autosize: true,
        paper_bgcolor: 'rgba(0,0,0,0)',
        plot_bgcolor: 'rgba(0,0,0,0)',
        margin: {l: 44, r: 16, t: 44, b: 36},
        modebar: {
          bgcolor: 'rgba(0,0,0,0)',
          color: colour('--muted'),
          activecolor: colour('--text'),
        },
        font: {
          family: 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif',
          size: 12.5,
          color: colour('--muted'),
        },
        hoverlabel: {
          bgcolor: colour('--card'),
          bordercolor: colour('--line'),
          font: {color: colour('--text')},
        },
        legend: {orientation: 'h', x: 1, xanchor: 'right', y: 1.02,
                 yanchor: 'bottom'},
      });
      for (const note of layout.annotations || []) {
        note.font = {color: colour('--text'), size: 12.5};
      }
      Plotly.react(id, resolve(figure.data), layout, {
        responsive: true,
        displaylogo: false,
        // Without a pointer that hovers, the buttons would never go away.
        displayModeBar: matchMedia('(hover: hover)').matches ? 'hover' : false,
        // By name, for Plotly's own set has a button that uploads the figure.
        modeBarButtons: [['toImage', 'zoom2d', 'pan2d', 'resetScale2d']],
        showSendToCloud: false,
        plotlyServerURL: '',
      });
    }
  }

  drawAll();
  matchMedia('(prefers-color-scheme: dark)').addEventListener(
      'change', drawAll);
})();
