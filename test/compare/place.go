package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"overlap/test/compare/internal/serve"
)

const answerBody = serve.Body

// place is where and with what a comparison was made.
type place struct {
	command, machine, kernel, versions string
}

func describe(args []string) place {
	return place{
		command:  strings.Join(append([]string{"go run ./test/compare"}, args...), " "),
		machine:  machine(),
		kernel:   kernel(),
		versions: versions(),
	}
}

// machine names the processor, as /proc/cpuinfo has it, and how much of it there is.
func machine() string {
	model := runtime.GOARCH
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	return fmt.Sprintf("%s, %d CPUs", model, runtime.NumCPU())
}

func kernel() string {
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	if r := strings.TrimSpace(string(release)); r != "" {
		return "Linux " + r
	}
	return runtime.GOOS
}

// versions asks each program for its own.
func versions() string {
	list := []string{"Go " + strings.TrimPrefix(runtime.Version(), "go")}
	if out, err := exec.Command("git", "describe", "--always", "--dirty").Output(); err == nil {
		list = append(list, "overlap "+strings.TrimSpace(string(out)))
	}
	for _, ask := range [][]string{{"nginx", "-v"}, {"haproxy", "-v"}, {"node", "--version"}, {"start_server", "--version"}} {
		program := look(ask[0])
		if program == "" {
			continue
		}
		out, err := exec.Command(program, ask[1:]...).CombinedOutput()
		if err != nil {
			continue
		}
		if v := version(string(out)); v != "" {
			list = append(list, ask[0]+" "+v)
		}
	}
	return strings.Join(list, ", ")
}

// version finds the first word that looks like one.
func version(text string) string {
	for _, word := range strings.Fields(text) {
		word = strings.TrimPrefix(word[strings.IndexByte(word, '/')+1:], "v")
		if word != "" && word[0] >= '0' && word[0] <= '9' && strings.Contains(word, ".") {
			return word
		}
	}
	return ""
}
