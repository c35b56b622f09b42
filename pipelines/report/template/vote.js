"use strict";

/* The vote of the nearest neighbours, as docs/architecture.md defines it: weights exp((s - s_max) / T), classes ordered
   by score, then by their nearest neighbour. All sums are in the order of the neighbours, as in Python. */

function voteWeights(similarities, k, vote, temperature) {
  const weights = new Float64Array(k);
  for (let place = 0; place < k; place++) {
    if (vote === "uniform") weights[place] = 1;
    else if (vote === "inverse_distance") weights[place] = 1 / (1e-5 - similarities[place]);
    else weights[place] = Math.exp((similarities[place] - similarities[0]) / temperature);
  }
  return weights;
}

/* Classes with a vote, best first: [{label, score, share, first}]; `first` is the place of the class's nearest. */
function countVotes(labels, similarities, k, vote, temperature) {
  const weights = voteWeights(similarities, k, vote, temperature);
  const found = new Map();
  let total = 0;
  for (let place = 0; place < k; place++) {
    const known = found.get(labels[place]);
    if (known) known.score += weights[place];
    else found.set(labels[place], { label: labels[place], score: weights[place], share: 0, first: place });
    total += weights[place];
  }
  const ranked = [...found.values()];
  for (const each of ranked) each.share = each.score / total;
  ranked.sort((a, b) => b.score - a.score || a.first - b.first);
  return ranked;
}

if (typeof module !== "undefined") module.exports = { voteWeights, countVotes };
