package launcher

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/joho/godotenv"
)

// What tells a program, and its processes, whose they are.
const (
	nameVariable       = "OVERLAP_NAME"
	generationVariable = "OVERLAP_GENERATION"
)

// environment is the program's: the request's, the file's, and what the launcher tells it.
// What speaks of the launcher's own sockets and manager is not passed on.
func (g *generation) environment() ([]string, error) {
	env := slices.DeleteFunc(slices.Clone(g.req.env), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		switch name {
		case "NOTIFY_SOCKET", "OVERLAP_HANDOVER", "OVERLAP_OWNER", nameVariable, generationVariable, "SYSTEMD_EXEC_PID":
			return true
		}
		return strings.HasPrefix(name, "LISTEN_") || strings.HasPrefix(name, "WATCHDOG_")
	})
	if file := g.req.set.EnvFile; file != "" {
		more, err := godotenv.Read(file)
		if err != nil {
			return nil, fmt.Errorf("environment file %s: %w", file, err)
		}
		for name, value := range more {
			env = append(env, name+"="+value)
		}
	}
	if g.req.dir != "" {
		env = append(env, "PWD="+g.req.dir)
	}
	return append(env,
		nameVariable+"="+g.l.opt.Name,
		generationVariable+"="+strconv.Itoa(g.owner.Number()),
		"OVERLAP_OWNER="+g.owner.Dir().LauncherPath(g.owner.Number()),
		g.notify.Env()), nil
}
