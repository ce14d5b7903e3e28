package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A report as ginkgo writes it, of a spec that passes, one that fails, one that skips itself, and one that is left out.
func reportOf(failing string) []byte {
	const spec = `{"ContainerHierarchyTexts": ["[k8s.io] A", "b"], "LeafNodeType": "It", "LeafNodeText": "NAME [Conformance]", "State": "STATE", "Failure": {"Message": "WHY"}}`
	specOf := func(name, state, why string) string {
		return strings.NewReplacer("NAME", name, "STATE", state, "WHY", why).Replace(spec)
	}
	return []byte(`[{"SpecReports": [{"LeafNodeType": "BeforeSuite", "State": "passed"},` +
		specOf("works|well", "passed", "") + "," + specOf("breaks", failing, "because") + "," + specOf("cannot", "skipped", "no feature") + "," +
		specOf("benchmark", "skipped", "") + "]}]")
}

func TestCRITable(t *testing.T) {
	results := cases{}
	for runtime, failing := range map[string]string{"runc": "passed", "boxlite": "failed"} {
		if err := readGinkgo(results, runtime, reportOf(failing)); err != nil {
			t.Fatal(err)
		}
	}
	for runtime, want := range map[string]string{
		"runc":    "runc: 2 of 2 specs pass, 1 skip themselves",
		"boxlite": "boxlite: 1 of 2 specs pass, 1 skip themselves",
	} {
		if got := results.summary(runtime, "spec"); got != want {
			t.Errorf("summary(%s) = %q, want %q", runtime, got, want)
		}
	}
	table, err := results.markdown(caseTable{noun: "spec", reasons: map[string]string{"A b breaks": "It cannot."}})
	if want := "| A b breaks | passed | failed | It cannot. |\n"; err != nil || !strings.HasSuffix(table, want) || strings.Contains(table, "works") {
		t.Errorf("markdown = %q, %v, want one row, %q", table, err, want)
	}
	for name, reasons := range map[string]map[string]string{
		"no reason":                  nil,
		"a reason of one that works": {"A b breaks": "It cannot.", "A b works|well": "It cannot either."},
		"a reason of none":           {"A b breaks": "It cannot.", "A c": "There is none."},
	} {
		if table, err := results.markdown(caseTable{noun: "spec", reasons: reasons}); err == nil {
			t.Errorf("markdown with %s = %q, want an error", name, table)
		}
	}
	if err := readGinkgo(results, "runc", []byte("no report")); err == nil {
		t.Error("readGinkgo of what is no report: no error")
	}
}

// A failure before all specs is one too.
func TestCRIFailureOfTheSuite(t *testing.T) {
	results := cases{}
	if err := readGinkgo(results, "boxlite", []byte(`[{"SpecReports": [{"LeafNodeType": "BeforeSuite", "State": "failed"}]}]`)); err != nil {
		t.Fatal(err)
	}
	if got := results.failing("boxlite"); len(got) != 1 || got[0] != "BeforeSuite" {
		t.Errorf("failing = %q, want the suite's beginning", got)
	}
}

// The tables in the document must be what the reasons are about.
func TestCasesOfTheDocument(t *testing.T) {
	document, err := os.ReadFile("../docs/conformance.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, of := range []caseTable{criTable, runcTable} {
		_, table, _, err := cutTable(document, of.begin, of.end)
		if err != nil {
			t.Fatal(err)
		}
		explained := 0
		for line := range strings.Lines(string(table)) {
			columns := strings.Split(strings.TrimSuffix(line, " |\n"), " | ")
			if len(columns) != 4 || columns[0] == "| "+of.noun {
				continue
			}
			name := strings.TrimPrefix(columns[0], "| ")
			if reason := of.reasons[name]; reason != strings.TrimSpace(columns[3]) {
				t.Errorf("%s: the table says %q, and the reasons %q", name, columns[3], reason)
			} else if reason != "" {
				explained++
			}
		}
		if explained != len(of.reasons) {
			t.Errorf("%d rows of a %s with a reason, and there are %d reasons", explained, of.noun, len(of.reasons))
		}
	}
}

// Everything in the archive can be read, and every program be executed.
func TestCRIImages(t *testing.T) {
	if _, err := os.Stat("/usr/bin/busybox"); err != nil {
		t.Skip(err)
	}
	t.Chdir("..")
	path := filepath.Join(t.TempDir(), "images.tar")
	if err := writeImages(path); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	layers := 0
	for _, f := range filesOf(t, content) {
		if !strings.HasSuffix(f.header.Name, ".tar") {
			continue
		}
		layers++
		names := map[string]bool{}
		for _, in := range filesOf(t, f.content) {
			names[in.header.Name] = true
			if strings.HasPrefix(in.header.Name, "bin/") && in.header.Mode&0o111 != 0o111 {
				t.Errorf("%s: %s has mode %o", f.header.Name, in.header.Name, in.header.Mode)
			}
		}
		if !names["bin/sh"] || !names["etc/passwd"] {
			t.Errorf("%s lacks a shell or users", f.header.Name)
		}
	}
	if layers != len(criImages) {
		t.Errorf("%d layers, want one for each of %d images", layers, len(criImages))
	}
}

type tarFile struct {
	header  *tar.Header
	content []byte
}

func filesOf(t *testing.T, archive []byte) (files []tarFile) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, tarFile{h, content})
	}
}
