// Package report shows results to people: a table, a chart for the terminal, a
// chart for a README.
package report
