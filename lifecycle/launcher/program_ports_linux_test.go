package launcher_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ports are those that a program of the tests opens when it is asked to.
type ports struct {
	mu  sync.Mutex
	lns map[string]net.Listener
}

func (p *ports) handle(mux *http.ServeMux) {
	for path, do := range map[string]func(addr, host string) (string, error){
		"/from/": connectFrom, "/listen/": p.listen, "/close/": p.close, "/late/": listenLate,
	} {
		mux.HandleFunc(path+"{address}", func(w http.ResponseWriter, r *http.Request) {
			said, err := do(r.PathValue("address"), r.Host)
			switch {
			case errors.Is(err, unix.EADDRINUSE):
				said = "EADDRINUSE"
			case err != nil:
				said = err.Error()
			}
			fmt.Fprintln(w, said)
		})
	}
}

// connectFrom is a client with a fixed port.
func connectFrom(addr, host string) (string, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr)), Timeout: 5 * time.Second}
	d.SetMultipathTCP(false)
	c, err := d.Dial("tcp", host)
	if err != nil {
		return "", err
	}
	c.(*net.TCPConn).SetLinger(0) // the port is wanted again
	return "connected", c.Close()
}

func (p *ports) listen(addr, _ string) (string, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return "", err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lns == nil {
		p.lns = map[string]net.Listener{}
	}
	p.lns[addr] = ln
	go http.Serve(ln, http.NotFoundHandler())
	return "listens", nil
}

func (p *ports) close(addr, _ string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return "closed", p.lns[addr].Close()
}

// listenLate binds now, and listens when nobody expects it any more.
func listenLate(addr, _ string) (string, error) {
	at := netip.MustParseAddrPort(addr)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()})
	}
	if err == nil {
		time.AfterFunc(11*time.Second, func() {
			unix.Listen(fd, 16)
			if ln, err := net.FileListener(os.NewFile(uintptr(fd), "late")); err == nil {
				http.Serve(ln, http.NotFoundHandler())
			}
		})
	}
	return "bound", err
}
