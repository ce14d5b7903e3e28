package main

import (
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// draw writes the times of "run true" of every runtime, and of the floors, as boxes into an SVG file.
func (r *result) draw(path string) error {
	p := plot.New()
	p.Title.Text = "run /bin/true, start to end"
	p.Y.Label.Text = "seconds"
	p.Y.Min = 0
	var names []string
	for _, row := range r.Rows {
		if row.What != "run true" && !slices.Contains([]string{bootFloor, restoreFloor}, row.What) {
			continue
		}
		name := row.Runtime
		if name == bareVM {
			name = map[string]string{bootFloor: "bare boot", restoreFloor: "bare restore"}[row.What]
		}
		box, err := plotter.NewBoxPlot(vg.Points(28), float64(len(names)), plotter.Values(row.Values))
		if err != nil {
			return err
		}
		p.Add(box)
		names = append(names, name)
	}
	p.Add(plotter.NewGrid())
	p.NominalX(names...)
	p.X.Min, p.X.Max = -0.7, float64(len(names))-0.3 // room for the outer names
	return p.Save(vg.Points(560), vg.Points(320), path)
}
