package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"ctguard/cmd/ctlab/internal/lab"
	"ctguard/cmd/ctlab/internal/report"
)

// writeChart writes results as SVG, and as PNG beside it where a converter is installed.
func writeChart(w io.Writer, path string, results []*lab.Result) error {
	var b bytes.Buffer
	if err := report.SVG(&b, results); err != nil {
		return err
	}
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		return err
	}
	png := strings.TrimSuffix(path, ".svg") + ".png"
	if convert(path, png) {
		_, err := fmt.Fprintf(w, "wrote %s and %s\n", path, png)
		return err
	}
	_, err := fmt.Fprintf(w, "wrote %s (no PNG: rsvg-convert and ImageMagick are not installed)\n", path)
	return err
}

// convert tries the converters that people have.
func convert(svg, png string) bool {
	for _, c := range [][]string{
		{"rsvg-convert", "--zoom", "2", "-o", png, svg},
		{"magick", "-density", "192", svg, png},
		{"convert", "-density", "192", svg, png},
	} {
		if exec.Command(c[0], c[1:]...).Run() == nil {
			return true
		}
	}
	return false
}
