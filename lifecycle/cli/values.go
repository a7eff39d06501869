package cli

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	urfave "github.com/urfave/cli/v2"
)

// list is what a flag that may be repeated was given, where a comma is in no value: it separates
// them as well, so that a variable can hold several.
func list(c *urfave.Context, flag string) []string {
	var all []string
	for _, value := range c.StringSlice(flag) {
		for one := range strings.SplitSeq(value, ",") {
			all = append(all, strings.TrimSpace(one))
		}
	}
	return all
}

// lines is what a flag that may be repeated was given, where a value may have commas in it, as a
// command has. On the command line it is one value a flag, in the variable one a line.
func lines(c *urfave.Context, flag string) []string {
	given := c.StringSlice(flag)
	variable := strings.TrimSpace(os.Getenv(environment(c.Command.Name, flag)))
	if variable == "" || !slices.Equal(given, []string{variable}) {
		return given
	}
	var all []string
	for line := range strings.Lines(variable) {
		if line = strings.TrimSpace(line); line != "" {
			all = append(all, line)
		}
	}
	return all
}

// The complaints about an address, as what is wanted instead.
var (
	errAddress = errors.New("host:port, unix:/path or udp:host:port")
	errPort    = errors.New("a port from 1 to 65535, or 0 for any")
)

// parseListen splits an address into network and address.
func parseListen(addr string) (network, at string, err error) {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		if path == "" {
			return "", "", errAddress
		}
		abs, err := filepath.Abs(path)
		return "unix", abs, err
	}
	network, at, ok := strings.Cut(addr, ":")
	if !ok || network != "tcp" && network != "udp" {
		network, at = "tcp", addr
	}
	_, port, err := net.SplitHostPort(at)
	if err != nil || port == "" {
		return "", "", errAddress
	}
	if _, err := net.LookupPort(network, port); err != nil {
		return "", "", errPort
	}
	return network, at, nil
}

// parseReady is parseListen for an address that makes a program ready. Port 0 would be any port,
// and the program ready at none.
func parseReady(addr string) (network string, err error) {
	network, at, err := parseListen(addr)
	switch {
	case errors.Is(err, errAddress), network == "unix":
		return "", errors.New("host:port or udp:host:port")
	case err != nil:
		return "", errors.New("a port from 1 to 65535")
	}
	_, port, _ := net.SplitHostPort(at)
	if n, err := net.LookupPort(network, port); err != nil || n == 0 {
		return "", errors.New("the port that the program listens on, not 0")
	}
	return network, nil
}
