// Guides come first, then the reference, then the records of decisions and measurements.
var Scorer = {
  score: ([page, , , , score]) =>
    /extension|gateway|operate/.test(page)
      ? score + 3
      : score - (/decisions|benchmarks|CHANGELOG|architecture/.test(page) ? 12 : 0),
  objNameMatch: 7,
  objPartialMatch: 3,
  objPrio: {},
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
