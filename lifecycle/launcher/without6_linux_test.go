package launcher_test

import (
	"testing"

	"overlap/test/netns"
)

// TestNoIPv6: where IPv6 is off, as in Docker's default network, a program's listener on [::] beside the one on
// 0.0.0.0 is not in the way. Nobody can reach it.
func TestNoIPv6(t *testing.T) {
	if !netns.Without6(t) {
		return
	}
	*reloads = min(*reloads, 5)
	programs := map[string]func(*service, string){
		"nginx": func(s *service, addr string) {
			_, port := splitAddress(s.t, addr)
			nginx("; listen [::]:"+port, 1)(s, addr)
		},
		"go": func(s *service, addr string) {
			_, port := splitAddress(s.t, addr)
			s.goProgram(programConfig{Kind: "polite", Listen: []string{addr, "[::]:" + port}, Option: "v6only"})
		},
	}
	for name, start := range programs {
		t.Run(name, func(t *testing.T) {
			reached(t, func(t *testing.T, s *service) {
				_, port := splitAddress(t, free(t, "tcp", "")) // of both families
				start(s, "0.0.0.0:"+port)
				s.loss("127.0.0.1:"+port, name == "nginx")
				if there := s.serving(0).Listeners; len(there) != 2 {
					t.Errorf("it listens on %+v, want both families", there)
				}
			})
		})
	}
	// What has no other address is healthy without anybody's connecting.
	t.Run("alone", func(t *testing.T) {
		reached(t, func(t *testing.T, s *service) {
			_, port := splitAddress(t, free(t, "tcp", ""))
			s.goProgram(programConfig{Kind: "polite", Listen: []string{"[::]:" + port}, Option: "v6only"})
			s.start()
			s.serving(0)
			s.reload()
			s.alone()
		})
	})
}
