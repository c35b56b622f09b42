startTheme();
for (const table of document.querySelectorAll("table.sortable")) makeSortable(table);
byId("view")?.addEventListener("change", (event) => setView(Number(event.target.value)));
startCharts();
startClasses();
startNeighbours();
startClusters();
startImages();
startSections();
