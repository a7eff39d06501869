package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	urfave "github.com/urfave/cli/v2"
	"golang.org/x/term"

	"overlap/lifecycle"
	"overlap/lifecycle/state"
	"overlap/lifecycle/webroot"
)

// DefaultListen is where serve listens when nobody says.
const DefaultListen = ":8080"

// receiveBuffer is asked for each UDP socket, in bytes; the system may give less. The default of
// 208 KiB holds some 250 datagrams: at 5,000 a second a busy machine lost 13 % to it.
const receiveBuffer = 4 << 20

// headerTimeout is how long a client may take to send a request's header.
const headerTimeout = 30 * time.Second

func (p *program) serveCommand() *urfave.Command {
	return &urfave.Command{
		Name:  "serve",
		Usage: "serve a directory; takes over from the generation that serves it",
		Description: "Serves the files of a directory, /healthz and /echo; at a udp: address it sends each datagram\n" +
			"back with its generation. Started while a service of this name runs, it takes over from it\n" +
			"without losing a request. SIGHUP starts the next generation, SIGTERM and SIGINT drain and end.\n" +
			"A time of 0 is none: no limit, no grace, no delay.",
		Flags: withEnvironment([]urfave.Flag{
			&urfave.StringSliceFlag{Name: "listen", Value: urfave.NewStringSlice(DefaultListen), Usage: "`ADDRESS` to listen on, host:port, unix:/path or udp:host:port; may be repeated, or several with commas"},
			&urfave.StringFlag{Name: "dir", Value: ".", Usage: "`DIR` to serve"},
			&urfave.StringFlag{Name: "name", Value: "serve", Usage: "the service's `NAME`"},
			&urfave.DurationFlag{Name: "delay", Usage: "how long /echo waits before it answers"},
			&urfave.StringFlag{Name: "tls-cert", Usage: "`FILE` with the certificate, for HTTPS"},
			&urfave.StringFlag{Name: "tls-key", Usage: "`FILE` with its key"},
			&urfave.DurationFlag{Name: "drain-timeout", Value: lifecycle.DefaultDrainTimeout, Usage: "from the switch or stop until what is left is cut"},
			&urfave.DurationFlag{Name: "idle-grace", Value: lifecycle.DefaultIdleGrace, Usage: "what idle connections get to send one more request"},
			&urfave.DurationFlag{Name: "start-timeout", Value: lifecycle.DefaultStartTimeout, Usage: "until a generation that is not healthy is given up"},
			&urfave.DurationFlag{Name: "shutdown-delay", Value: lifecycle.DefaultShutdownDelay, Usage: "how long a stop goes on accepting while /healthz says 503"},
		}, "serve"),
		Action: p.serve,
	}
}

func (p *program) serve(c *urfave.Context) error {
	s, err := p.readServe(c)
	if err != nil {
		return err
	}
	if err := s.run(c.Context); err != nil {
		return &failure{"serve", s.options.Name, err}
	}
	return nil
}

// server is what serve was told.
type server struct {
	options   lifecycle.Options
	listen    [][2]string // network and address
	dir       string
	delay     time.Duration
	cert, key string
	stderr    io.Writer
}

func (p *program) readServe(c *urfave.Context) (*server, error) {
	if err := noArguments(c); err != nil {
		return nil, err
	}
	s := &server{dir: c.String("dir"), delay: c.Duration("delay"), cert: c.String("tls-cert"), key: c.String("tls-key"),
		stderr: p.stderr}
	s.options = lifecycle.Options{Name: c.String("name"), StateDir: p.stateDir, Logger: p.log}
	if err := state.ValidName(s.options.Name); err != nil {
		return nil, refused(c, "name", s.options.Name, err.Error())
	}
	for flag, to := range map[string]*time.Duration{"drain-timeout": &s.options.DrainTimeout, "idle-grace": &s.options.IdleGrace,
		"start-timeout": &s.options.StartTimeout, "shutdown-delay": &s.options.ShutdownDelay} {
		d := c.Duration(flag)
		if d < 0 {
			return nil, badValue(c, flag, d.String(), "0 or more")
		}
		if *to = d; d == 0 {
			*to = -1 // the library's word for none
		}
	}
	if s.delay < 0 {
		return nil, badValue(c, "delay", s.delay.String(), "0 or more")
	}
	if (s.cert == "") != (s.key == "") {
		return nil, &usageError{"serve: --tls-cert and --tls-key belong together", "see the flags: overlap help serve"}
	}
	for _, addr := range list(c, "listen") {
		network, at, err := parseListen(addr)
		if err != nil {
			return nil, badValue(c, "listen", addr, err.Error())
		}
		s.listen = append(s.listen, [2]string{network, at})
	}
	if len(s.listen) == 0 {
		return nil, badValue(c, "listen", "", "an address")
	}
	return s, nil
}

// run serves until the generation ends.
func (s *server) run(ctx context.Context) error {
	var g *lifecycle.Generation
	s.options.AfterDrain = func(r lifecycle.Report) {
		if isTerminal(s.stderr) {
			fmt.Fprintln(s.stderr, wordsOfEnd(s.options.Name, g.Number(), r))
		}
	}
	g, err := lifecycle.New(s.options)
	if err != nil {
		return err
	}
	defer g.Close()
	handler, err := webroot.Handler(webroot.Options{Dir: s.dir, Delay: s.delay, Generation: g.Number, Readiness: g.Readiness()})
	if err != nil {
		return err
	}
	var listeners []net.Listener
	for _, at := range s.listen {
		if at[0] == "udp" {
			pc, err := g.ListenPacket(ctx, at[0], at[1])
			if err != nil {
				return err
			}
			if sized, ok := pc.(interface{ SetReadBuffer(int) error }); ok {
				sized.SetReadBuffer(receiveBuffer)
			}
			s.listening(g, pc.LocalAddr())
			g.ServePacket(pc, func(pc net.PacketConn) error { return webroot.EchoDatagrams(pc, g.Number) }, nil)
			continue
		}
		ln, err := g.Listen(ctx, at[0], at[1])
		if err != nil {
			return err
		}
		s.listening(g, ln.Addr())
		listeners = append(listeners, ln)
	}
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: headerTimeout,
		ErrorLog: slog.NewLogLogger(s.options.Logger.Handler(), slog.LevelDebug)}
	if s.cert != "" {
		g.HTTPS(srv, s.cert, s.key, listeners...)
	} else {
		g.HTTP(srv, listeners...)
	}
	return g.Run(ctx)
}

func (s *server) listening(g *lifecycle.Generation, at net.Addr) {
	s.options.Logger.Info("listening", "generation", g.Number(), "service", s.options.Name, "address", shownAddress(at))
}

func shownAddress(a net.Addr) string {
	if a.Network() != "tcp" {
		return a.Network() + ":" + a.String()
	}
	return a.String()
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
