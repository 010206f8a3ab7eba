// Package chart has what every chart of ctguard in SVG has: a plane, with something in percent over time, its grid and
// its lines. What a chart shows beside that, and its colours, are its template's.
package chart
