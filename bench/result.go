package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// result is what is printed and written. Rows are in the order in which they were first measured.
type result struct {
	Date    string         `json:"date"`
	Machine string         `json:"machine"`
	Rows    []*row         `json:"rows"`
	Memory  []memorySample `json:"memory"`
}

// row is one measurement on one runtime.
type row struct {
	What    string    `json:"what"`
	Runtime string    `json:"runtime"`
	Seconds []float64 `json:"seconds"`
}

// memorySample is one process of an idle container.
type memorySample struct {
	Runtime   string `json:"runtime"`
	Container string `json:"container"`
	Program   string `json:"program"`
	RSSKiB    int    `json:"rssKiB"`
	PSSKiB    int    `json:"pssKiB"`
}

func (r *result) add(what, runtime string, took time.Duration) {
	i := slices.IndexFunc(r.Rows, func(x *row) bool { return x.What == what && x.Runtime == runtime })
	if i < 0 {
		i = len(r.Rows)
		r.Rows = append(r.Rows, &row{What: what, Runtime: runtime})
		fmt.Printf("measuring %s with %s\n", what, runtime)
	}
	r.Rows[i].Seconds = append(r.Rows[i].Seconds, took.Seconds())
}

// alternate times f n times on each subject, in turns. The first round does not count.
func (r *result) alternate(what string, n int, subjects []subject, f func(s subject, id string) error) error {
	for i := range n + 1 {
		for _, s := range subjects {
			began := time.Now()
			if err := f(s, fmt.Sprintf("bench-%s-%d", s.name, i)); err != nil {
				return fmt.Errorf("%s with %s: %w", what, s.name, err)
			}
			if i > 0 {
				r.add(what, s.name, time.Since(began))
			}
		}
	}
	return nil
}

// quantile of sorted samples, interpolated between the two nearest.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	below := int(at)
	if below == len(sorted)-1 {
		return sorted[below]
	}
	return sorted[below] + (at-float64(below))*(sorted[below+1]-sorted[below])
}

func (r *result) table() string {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "seconds\truntime\tmin\tquartile\tmedian\tquartile\tmax\tn\t")
	for _, row := range r.Rows {
		s := slices.Sorted(slices.Values(row.Seconds))
		fmt.Fprintf(w, "%s\t%s\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%d\t\n",
			row.What, row.Runtime, s[0], quantile(s, 0.25), quantile(s, 0.5), quantile(s, 0.75), s[len(s)-1], len(s))
	}
	w.Flush()
	b.WriteByte('\n')
	w = tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "MiB of an idle container\truntime\tRSS\tPSS\tn\t")
	for _, line := range r.memoryLines() {
		fmt.Fprintln(w, line)
	}
	w.Flush()
	return b.String()
}

// memoryLines are the medians over the containers, a line for each program and one for their sum. virtiofsd is two
// processes, which count as one program.
func (r *result) memoryLines() []string {
	type program struct{ runtime, name string }
	type sizes struct{ rss, pss float64 }
	perContainer := map[program]map[string]sizes{}
	var programs []program
	for _, m := range r.Memory {
		p := program{m.Runtime, m.Program}
		if perContainer[p] == nil {
			perContainer[p] = map[string]sizes{}
			programs = append(programs, p)
		}
		s := perContainer[p][m.Container]
		perContainer[p][m.Container] = sizes{s.rss + float64(m.RSSKiB)/1024, s.pss + float64(m.PSSKiB)/1024}
	}
	var lines []string
	sum := map[string]float64{}
	for _, p := range programs {
		var rss, pss []float64
		for _, s := range perContainer[p] {
			rss, pss = append(rss, s.rss), append(pss, s.pss)
		}
		slices.Sort(rss)
		slices.Sort(pss)
		lines = append(lines, fmt.Sprintf("%s\t%s\t%.1f\t%.1f\t%d\t", p.name, p.runtime, quantile(rss, 0.5), quantile(pss, 0.5), len(pss)))
		sum[p.runtime] += quantile(pss, 0.5)
	}
	for _, name := range []string{"runc", "boxlite"} {
		lines = append(lines, fmt.Sprintf("sum\t%s\t\t%.1f\t\t", name, sum[name]))
	}
	return lines
}

// describeMachine is the reader's context for the numbers.
func describeMachine(h *host) string {
	cpu := "unknown processor"
	if raw, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(raw)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				cpu = strings.TrimSpace(value)
				break
			}
		}
	}
	load := "unknown"
	if raw, err := os.ReadFile("/proc/loadavg"); err == nil {
		load = strings.Fields(string(raw))[0]
	}
	lines := []string{fmt.Sprintf("%d x %s, Linux %s, load average %s", runtime.NumCPU(), cpu, first("uname", "-r"), load)}
	for _, s := range h.subjects {
		lines = append(lines, first(s.bin, "--version"))
	}
	lines = append(lines, first("dockerd", "--version"), first("qemu-system-x86_64", "--version"))
	return strings.Join(lines, "\n")
}

// first is the first line of a command's output, or what went wrong.
func first(name string, args ...string) string {
	out, err := output(name, args...)
	if err != nil {
		return err.Error()
	}
	line, _, _ := strings.Cut(out, "\n")
	return line
}
