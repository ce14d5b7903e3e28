package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/isolate"
)

// critest is Kubernetes' suite for what kubelet asks of a container engine. Here the engine is Debian's containerd, a new one
// for each runtime, isolated as the programs of the OCI suite are:
//
//	init, cgroups   see internal/isolate
//	cri             sets up the network, starts containerd, imports images, and runs critest
const (
	criStageName = "conformance-cri"
	criTimeout   = 90 * time.Minute
	// criLeftOut are the specs that pull images of a registry, which is containerd's work alone, and those that only
	// measure.
	criLeftOut = `Image Manager|benchmark`
)

// buildCRITools builds crictl and critest, unless the cache has them, and returns their directory.
func buildCRITools() (string, error) {
	return criModule.built(func(dir string) error {
		const tools = "sigs.k8s.io/cri-tools/cmd/"
		_, err := criModule.goTool("build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "crictl"), tools+"crictl")
		if err != nil {
			return err
		}
		_, err = criModule.goTool("test", "-c", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "critest"), tools+"critest")
		return err
	})
}

func printCRITools(options) error {
	dir, err := buildCRITools()
	if err == nil {
		fmt.Println(dir)
	}
	return err
}

func conformCRI(o options) error {
	runtimes, err := runtimesOf(o)
	if err != nil {
		return err
	}
	tools, err := buildCRITools()
	if err != nil {
		return err
	}
	specs := cases{}
	for _, rt := range runtimes {
		started := time.Now()
		if err := runCritest(o, tools, rt, specs); err != nil {
			return fmt.Errorf("critest with %s: %w", rt.name, err)
		}
		specs.print(rt.name, criTable.noun)
		fmt.Println("in", time.Since(started).Round(time.Second))
	}
	if o.run != "" || o.check {
		return nil
	}
	return specs.write(o.table, criTable)
}

// runCritest adds what critest says of a runtime to the results.
func runCritest(o options, tools string, rt ociRuntime, results cases) error {
	work, err := os.MkdirTemp("/var/tmp", "boxlite-critest-") // on disk: containerd unpacks images there
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := writeImages(filepath.Join(work, imagesFile)); err != nil {
		return fmt.Errorf("images: %w", err)
	}
	if err := writeCRIConfig(work, rt); err != nil {
		return err
	}
	report := filepath.Join(work, "report.json")
	out, errs, err := isolated(isolate.Job{
		Path: "/proc/self/exe", Dir: work, OwnNetwork: true, Timeout: criTimeout, // its bridge and ports are its own
		Args: []string{
			criStageName, work, filepath.Join(tools, "critest"),
			"--runtime-endpoint", "unix://" + criSocket, "--ginkgo.skip", criLeftOut, "--ginkgo.focus", o.run,
			"--ginkgo.no-color", "--ginkgo.timeout", criTimeout.String(), "--ginkgo.json-report", report,
		},
	})
	if o.verbose {
		fmt.Printf("%s%s", out, errs)
	}
	text, readErr := os.ReadFile(report)
	if readErr != nil { // critest's own failure is no more than a failing spec
		return errors.Join(err, fmt.Errorf("%s%s", out, errs))
	}
	return readGinkgo(results, rt.name, text)
}

// criFlags are those that a runtime is run with: a pod's sandbox hears of no capability that critest gives its members, and
// cannot choose the kernel for that.
var criFlags = map[string]string{"boxlite": "--kernel net"}

// Names in the namespaces of a job.
const (
	criSocket  = "/run/containerd.sock"
	imagesFile = "images.tar"
)

// writeCRIConfig writes containerd's configuration and that of its network, in which the runtime is the only one. containerd
// can give a runtime no flags, so a script does.
func writeCRIConfig(work string, rt ociRuntime) error {
	program := filepath.Join(work, rt.name)
	script := fmt.Sprintf("#!/bin/sh\nexec %s %s \"$@\"\n", rt.path, criFlags[rt.name])
	config := fmt.Sprintf(`version = 2
root = %[1]q
state = "/run/containerd"
[grpc]
  address = %[2]q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %[3]q
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = %[4]q
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = %[5]q
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.%[5]s]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.%[5]s.options]
        BinaryName = %[6]q
`, filepath.Join(work, "root"), criSocket, pauseImage, filepath.Join(work, "cni"), rt.name, program)
	const network = `{"cniVersion": "0.4.0", "name": "critest", "plugins": [
  {"type": "bridge", "bridge": "critest0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "/run/cni"}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
`
	return errors.Join(
		os.WriteFile(program, []byte(script), 0o755),
		os.WriteFile(filepath.Join(work, "config.toml"), []byte(config), 0o644),
		os.Mkdir(filepath.Join(work, "cni"), 0o755),
		os.WriteFile(filepath.Join(work, "cni/10-critest.conflist"), []byte(network), 0o644),
	)
}

// criStage runs a command, critest's, beside a containerd. What it starts ends with its pid namespace.
func criStage(args []string) error {
	work, command := args[0], args[1:]
	if err := must("ip", "link", "set", "lo", "up"); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		return err
	}
	daemon := exec.Command("containerd", "--config", filepath.Join(work, "config.toml"))
	log, err := os.Create(filepath.Join(work, "containerd.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	daemon.Stdout, daemon.Stderr = log, log
	if err := daemon.Start(); err != nil {
		return err
	}
	if err := awaitContainerd(); err != nil {
		text, _ := os.ReadFile(log.Name()) // for the message only
		return fmt.Errorf("%w: %s", err, text)
	}
	if err := must("ctr", "--address", criSocket, "--namespace", "k8s.io", "images", "import", filepath.Join(work, imagesFile)); err != nil {
		return err
	}
	return unix.Exec(command[0], command, os.Environ())
}

// awaitContainerd asks until containerd answers: it tells its readiness to systemd only.
func awaitContainerd() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		err := exec.CommandContext(ctx, "ctr", "--address", criSocket, "version").Run()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("containerd does not answer: %w", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// must runs a command that must succeed.
func must(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}

// readGinkgo adds a runtime's results from ginkgo's report.
func readGinkgo(results cases, runtime string, report []byte) error {
	var suites []struct {
		SpecReports []struct {
			ContainerHierarchyTexts []string
			LeafNodeType            string
			LeafNodeText            string
			State                   string
			Failure                 struct{ Message string }
		}
	}
	if err := json.Unmarshal(report, &suites); err != nil {
		return fmt.Errorf("ginkgo's report: %w", err)
	}
	for _, suite := range suites {
		for _, spec := range suite.SpecReports {
			if spec.State == "skipped" && spec.Failure.Message == "" {
				continue // criLeftOut, or not in focus
			}
			name := strings.Join(append(spec.ContainerHierarchyTexts, spec.LeafNodeText), " ")
			if spec.LeafNodeType != "It" {
				if spec.State == "passed" {
					continue
				}
				name = spec.LeafNodeType // what goes before or after all specs has no name
			}
			name = strings.TrimSuffix(strings.TrimPrefix(name, "[k8s.io] "), " [Conformance]")
			results.add(name, runtime, caseResult{spec.State, spec.Failure.Message})
		}
	}
	return nil
}
