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
	Targets []target       `json:"targets"`
}

// row is one measurement on one runtime.
type row struct {
	What    string    `json:"what"`
	Runtime string    `json:"runtime"`
	Unit    string    `json:"unit"`
	Values  []float64 `json:"values"`
}

// Units of rows; mebibytes is the third.
const (
	seconds = "s"
	rate    = "MiB/s"
)

// memorySample is one process of an idle container.
type memorySample struct {
	Runtime   string `json:"runtime"`
	Container string `json:"container"`
	Program   string `json:"program"`
	RSSKiB    int    `json:"rssKiB"`
	PSSKiB    int    `json:"pssKiB"`
}

func (r *result) add(what, runtime, unit string, value float64) {
	x := r.row(what, runtime)
	if x == nil {
		fmt.Printf("measuring %s with %s\n", what, runtime)
		r.Rows = append(r.Rows, &row{What: what, Runtime: runtime, Unit: unit})
		x = r.Rows[len(r.Rows)-1]
	}
	x.Values = append(x.Values, value)
}

// row is nil for what was not measured.
func (r *result) row(what, runtime string) *row {
	i := slices.IndexFunc(r.Rows, func(x *row) bool { return x.What == what && x.Runtime == runtime })
	if i < 0 {
		return nil
	}
	return r.Rows[i]
}

// median of a row's values.
func (x *row) median() float64 { return quantile(slices.Sorted(slices.Values(x.Values)), 0.5) }

// alternate times f, which starts a container, n times on each subject, in turns. The first round does not count.
func (r *result) alternate(what string, n int, subjects []subject, f func(s subject, id string) error) error {
	for i := range n + 1 {
		for _, s := range subjects {
			began := time.Now()
			if err := f(s, fmt.Sprintf("bench-%s-%d", s.name, i)); err != nil {
				return fmt.Errorf("%s with %s: %w", what, s.name, err)
			}
			if i > 0 {
				r.add(what, s.name, seconds, time.Since(began).Seconds())
			}
			if err := s.started(); err != nil {
				return err
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
	fmt.Fprintln(w, "what\truntime\tunit\tmin\tquartile\tmedian\tquartile\tmax\tn\t")
	for _, row := range r.Rows {
		s := slices.Sorted(slices.Values(row.Values))
		fmt.Fprintf(w, "%s\t%s\t%s\t%.4g\t%.4g\t%.4g\t%.4g\t%.4g\t%d\t\n",
			row.What, row.Runtime, row.Unit, s[0], quantile(s, 0.25), quantile(s, 0.5), quantile(s, 0.75), s[len(s)-1], len(s))
	}
	w.Flush()
	if len(r.Memory) > 0 {
		b.WriteByte('\n')
		r.memoryTable(&b)
	}
	if table := r.programTable(); table != "" {
		b.WriteString("\n" + table)
	}
	b.WriteByte('\n')
	w = tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "target\tmeasured\t\tlimit\t\t")
	for _, t := range r.Targets {
		fmt.Fprintf(w, "%s\t%.3g\t%s\t%.3g\t%s\t\n", t.What, t.Got, t.relation(), t.Limit, t.verdict())
	}
	w.Flush()
	return b.String()
}

func (r *result) memoryTable(b *bytes.Buffer) {
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "MiB of an idle container\truntime\tRSS\tPSS\tn\t")
	var runtimes []string
	for _, m := range r.memoryMedians() {
		fmt.Fprintf(w, "%s\t%s\t%.1f\t%.1f\t%d\t\n", m.program, m.runtime, m.rss, m.pss, m.n)
		if !slices.Contains(runtimes, m.runtime) {
			runtimes = append(runtimes, m.runtime)
		}
	}
	for _, name := range runtimes {
		fmt.Fprintf(w, "sum\t%s\t\t%.1f\t\t\n", name, r.idlePSS(name))
	}
	w.Flush()
}

// memoryMedian is what a program of a runtime takes, by the median over containers, in MiB.
type memoryMedian struct {
	program, runtime string
	rss, pss         float64
	n                int
}

// memoryMedians has a line for each program. virtiofsd is two processes, which count as one program.
func (r *result) memoryMedians() (lines []memoryMedian) {
	type program struct{ runtime, name string }
	perContainer := map[program]map[string]memorySample{}
	var programs []program
	for _, m := range r.Memory {
		p := program{m.Runtime, m.Program}
		if perContainer[p] == nil {
			perContainer[p] = map[string]memorySample{}
			programs = append(programs, p)
		}
		sum := perContainer[p][m.Container]
		sum.RSSKiB, sum.PSSKiB = sum.RSSKiB+m.RSSKiB, sum.PSSKiB+m.PSSKiB
		perContainer[p][m.Container] = sum
	}
	for _, p := range programs {
		var rss, pss []float64
		for _, m := range perContainer[p] {
			rss, pss = append(rss, float64(m.RSSKiB)/1024), append(pss, float64(m.PSSKiB)/1024)
		}
		slices.Sort(rss)
		slices.Sort(pss)
		lines = append(lines, memoryMedian{p.name, p.runtime, quantile(rss, 0.5), quantile(pss, 0.5), len(pss)})
	}
	return lines
}

// idlePSS is what all programs of a runtime take together, in MiB.
func (r *result) idlePSS(runtime string) (sum float64) {
	for _, m := range r.memoryMedians() {
		if m.runtime == runtime {
			sum += m.pss
		}
	}
	return sum
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
