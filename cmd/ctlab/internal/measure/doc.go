// Package measure turns what was recorded into figures: success over time,
// quantiles, outages, the moment of recovery.
//
// It is arithmetic only; times are offsets from the start of the scenario. Where
// there is nothing to measure the figure is NaN or nil, never a flattering 100 %.
package measure
