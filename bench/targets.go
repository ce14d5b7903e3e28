package main

import (
	"fmt"
	"strings"
)

// A target is a promise about a figure of this very run.
type target struct {
	What  string  `json:"what"`
	Got   float64 `json:"got"`
	Limit float64 `json:"limit"`
	// AtLeast says that the figure may not be below the limit; otherwise it may not be above.
	AtLeast bool `json:"atLeast"`
}

func (t target) relation() string {
	if t.AtLeast {
		return ">="
	}
	return "<="
}

func (t target) verdict() string {
	if t.AtLeast == (t.Got >= t.Limit) || t.Got == t.Limit {
		return "met"
	}
	return "MISSED"
}

// medianOf is zero for what was not measured.
func (r *result) medianOf(what, runtime string) float64 {
	if x := r.row(what, runtime); x != nil {
		return x.median()
	}
	return 0
}

// targets judges the medians.
func targets(r *result) []target {
	m := r.medianOf
	const run, dockerRun, dockerExec = "run true", "docker run --rm true", "docker exec true"
	warmFloor, coldFloor := m(restoreFloor, bareVM), m(bootFloor, bareVM)
	list := []target{
		{What: "run true, warm / restore by hand", Got: m(run, warm) / warmFloor, Limit: 1.5},
		{What: "run true, warm / cold", Got: m(run, warm) / m(run, cold), Limit: 0.35},
		{What: "create, cold / boot by hand", Got: m("create", cold) / coldFloor, Limit: 1.25},
		{What: "(docker run, warm - runc) / restore by hand", Got: (m(dockerRun, warm) - m(dockerRun, "runc")) / warmFloor, Limit: 1.3},
		{What: "docker exec, warm - runc, s", Got: m(dockerExec, warm) - m(dockerExec, "runc"), Limit: 0.08},
	}
	list = append(list,
		target{What: "run true, standby / restore by hand", Got: m(run, standby) / warmFloor, Limit: 1.5},
		target{What: "run true, standby / cold", Got: m(run, standby) / m(run, cold), Limit: 0.35},
		target{What: "(docker run, standby - runc) / restore by hand", Got: (m(dockerRun, standby) - m(dockerRun, "runc")) / warmFloor, Limit: 1.3})
	if x := r.row(run, "runsc"); x != nil {
		list = append(list,
			target{What: "run true, warm / runsc", Got: m(run, warm) / x.median(), Limit: 2},
			target{What: "run true, standby / runsc", Got: m(run, standby) / x.median(), Limit: 2})
	}
	list = append(list,
		target{What: "idle container, MiB of PSS", Got: r.idlePSS(warm), Limit: 90},
		target{What: "idle container, standby, MiB of PSS", Got: r.idlePSS(standby), Limit: 90})
	for _, row := range r.Rows {
		switch {
		case strings.Contains(row.What, "at once"):
			what := row.What + " / one"
			if row.Runtime == standby {
				what = row.What + ", standby / one"
			}
			list = append(list, target{What: what, Got: row.median() / m(run, row.Runtime), Limit: 12})
		case strings.HasPrefix(row.What, "stdout"):
			list = append(list, target{What: row.What + ", MiB/s", Got: row.median(), Limit: 150, AtLeast: true})
		case row.Runtime == bareVM && row.Unit == rate:
			list = append(list, target{What: row.What + ", boxlite / bare VM", Got: m(row.What, warm) / row.median(), Limit: 0.8, AtLeast: true})
		case row.Runtime == bareVM && strings.Contains(row.What, ": "):
			list = append(list, target{What: row.What + ", bare VM / boxlite", Got: row.median() / m(row.What, warm), Limit: 0.8, AtLeast: true})
		}
	}
	list = append(list, podTargets(r)...)
	first := ""
	for _, row := range r.Rows {
		if !strings.HasPrefix(row.What, "with ") {
			continue
		}
		_, what, _ := strings.Cut(row.What, ": ")
		if first == "" {
			first = strings.TrimSuffix(row.What, what)
		}
		if !strings.HasPrefix(row.What, first) {
			list = append(list, target{What: fmt.Sprintf("%s / the first's", row.What), Got: row.median() / m(first+what, warm), Limit: 1.3})
		}
	}
	return list
}

// dindTargets judges those of Docker in Docker: no slower than the bare VM, but for what two rounds of the same differ by.
func dindTargets(r *result) []target {
	var list []target
	for _, what := range []string{dindListen, dindRun, dindAgain} {
		list = append(list, target{What: what + ", boxlite / bare VM", Got: r.medianOf(what, warm) / r.medianOf(what, bareVM), Limit: 1.05})
	}
	for _, op := range dindOperations {
		what := dindPrefix + op.what
		list = append(list, target{What: what + ", volume / scratch disk", Got: r.medianOf(what, onVolume) / r.medianOf(what, onScratch), Limit: 2})
	}
	return append(list,
		target{What: dindListen + ", s", Got: r.medianOf(dindListen, warm), Limit: 15},
		target{What: dindRun + ", s", Got: r.medianOf(dindRun, warm), Limit: 6})
}

// programTargets judges how much slower programs are than with runc.
func programTargets(r *result) []target {
	var list []target
	for _, name := range programs {
		what := programPrefix + name
		if r.row(what, warm) == nil || r.row(what, "runc") == nil {
			continue
		}
		list = append(list, target{What: name + ", boxlite / runc", Got: r.medianOf(what, warm) / r.medianOf(what, "runc"), Limit: slowdown})
	}
	return list
}
