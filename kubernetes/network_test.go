package kubernetes

import (
	"fmt"
	"strings"
	"testing"
)

// A Deployment of two pods with two containers each, and a Service in front of them, which another pod and the node reach.
// The containers of a pod meet at localhost.
func TestDeployment(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.apply(`
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: http, nodePort: 30080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      runtimeClassName: $RUNTIME
      terminationGracePeriodSeconds: 1
      containers:
      - name: front
        image: $IMAGE
        command: [sh, -c]
        args:
        - |
          mkdir -p /www/cgi-bin
          printf '#!/bin/sh\necho; echo "$(hostname): $(wget -qO- http://127.0.0.1:9000/)"\n' >/www/cgi-bin/page
          chmod +x /www/cgi-bin/page
          exec httpd -f -p 8080 -h /www
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /cgi-bin/page, port: http}, periodSeconds: 2, timeoutSeconds: 10}
      - name: back
        image: $IMAGE
        command: [sh, -c, "mkdir /www; echo from the back >/www/index.html; exec httpd -f -p 127.0.0.1:9000 -h /www"]
`)
		e.wait("deployment/web", "condition=Available")
		// The pod learns of the service by its environment: it starts later.
		e.apply(`
$POD(client)
  containers: [{name: client, image: $IMAGE, command: [sleep, "10000"]}]
`)
		e.ready("client")
		pods := strings.Fields(e.of("pods", `.items[?(@.metadata.labels.app=="web")].metadata.name`))
		if len(pods) != 2 {
			e.Fatalf("pods of the Deployment: %q, want 2", pods)
		}
		for _, pod := range pods {
			address := e.of("pod/"+pod, ".status.podIP")
			e.want("page of "+pod+" at its address", e.in("client", "client", "wget -qO- http://"+address+":8080/cgi-bin/page"), pod+": from the back")
		}
		e.reachesAll("the Service, from a pod", pods, func() string {
			return e.in("client", "client", `wget -qO- "http://$WEB_SERVICE_HOST:$WEB_SERVICE_PORT/cgi-bin/page"`)
		})
		// A pod that the Service leads to may be its own client.
		e.reachesAll("the Service, from one of its own pods", pods, func() string {
			return e.in(pods[0], "back", "wget -qO- http://"+e.of("service/web", ".spec.clusterIP")+"/cgi-bin/page")
		})
		e.wantPart("the Service's port on the node", e.onNode("wget -qO- http://"+nodeIP+":30080/cgi-bin/page"), ": from the back")
		e.wantPart("the API's answer to a pod that does not encrypt", e.in("client", "client", "wget -qO- http://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/ 2>&1; true"), "400 Bad Request")

		e.ok("rollout", "restart", "deployment/web")
		e.ok("rollout", "status", "deployment/web", "--timeout", patience.String())
		e.wantPart("the Service after a new rollout", e.in("client", "client", `wget -qO- "http://$WEB_SERVICE_HOST/cgi-bin/page"`), ": from the back")
	})
}

// reachesAll wants that calls reach each of the pods in the end, and nothing else.
func (e *env) reachesAll(what string, pods []string, call func() string) {
	e.Helper()
	missing := map[string]bool{}
	for _, pod := range pods {
		missing[pod+": from the back"] = true
	}
	for range 50 { // kube-proxy throws a coin
		answer := call()
		if _, from, _ := strings.Cut(answer, ": "); from != "from the back" {
			e.Fatalf("%s: %q", what, answer)
		}
		if delete(missing, answer); len(missing) == 0 {
			return
		}
	}
	e.Errorf("%s: nothing from %v", what, missing)
}

// onNode runs a script on the node.
func (e *env) onNode(script string) string {
	e.Helper()
	out, err := shOutput(script)
	e.noErr(err)
	return strings.TrimSuffix(out, "\n")
}

// Liveness and readiness, by a command, over HTTP and over TCP: what fails is no endpoint any more, or starts anew, and
// recovers.
func TestProbes(t *testing.T) {
	eachRuntime(t, func(e *env) {
		const container = `
  - name: %s
    image: $IMAGE
    command: [sh, -c, %q]
    readinessProbe: {%s, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 1}
    livenessProbe: {%s, periodSeconds: 2, timeoutSeconds: 10, failureThreshold: 4}
`
		const begin = "mkdir /www; touch /www/ready /www/alive; "
		// A port is open while there is a file.
		const listen = `
listen() {
	while sleep 0.2; do
		[ -e $1 ] || continue
		probe serve tcp :$2 &
		while [ -e $1 ]; do sleep 0.2; done
		kill $!
	done
}
listen /www/ready 7001 & listen /www/alive 7002`
		e.apply(`
$POD(probed)
  containers:` +
			fmt.Sprintf(container, "exec", begin+"exec sleep 10000", "exec: {command: [test, -e, /www/ready]}", "exec: {command: [test, -e, /www/alive]}") +
			fmt.Sprintf(container, "http", begin+"exec httpd -f -p 8080 -h /www", "httpGet: {path: /ready, port: 8080}", "httpGet: {path: /alive, port: 8080}") +
			fmt.Sprintf(container, "tcp", begin+listen, "tcpSocket: {port: 7001}", "tcpSocket: {port: 7002}"))
		e.ready("probed")
		for _, kind := range []string{"exec", "http", "tcp"} {
			restarts := func() string { return e.status("probed", kind, ".restartCount") }
			ready := func() string { return e.status("probed", kind, ".ready") }
			e.want("restarts of "+kind+", while all is well", restarts(), "0")
			e.in("probed", kind, "rm /www/ready")
			e.becomes(kind+" is not ready", "false", ready)
			e.wait("pod/probed", "condition=Ready=false")
			e.in("probed", kind, "touch /www/ready")
			e.becomes(kind+" is ready again", "true", ready)
			e.want("restarts of "+kind+", after it was not ready", restarts(), "0")

			e.in("probed", kind, "rm /www/alive")
			e.becomes(kind+" has been restarted", "1", restarts)
			e.becomes(kind+" is ready after that", "true", ready)
		}
		e.ready("probed")
		for _, kind := range []string{"exec", "http", "tcp"} {
			e.want("restarts of "+kind+" in all", e.status("probed", kind, ".restartCount"), "1")
		}
	})
}
