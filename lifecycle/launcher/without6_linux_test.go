package launcher_test

import (
	"os"
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
				s.loss("127.0.0.1:"+port, false) // neither ends kept connections well
				if there := s.serving(0).Listeners; len(there) != 2 {
					t.Errorf("it listens on %+v, want both families", there)
				}
			})
		})
	}
	// An address that comes later is one where the new program is reached.
	t.Run("later", func(t *testing.T) {
		s := newService(t)
		_, port := splitAddress(t, free(t, "tcp", ""))
		s.goProgram(programConfig{Kind: "polite", Listen: []string{"0.0.0.0:" + port, "[::]:" + port}, Option: "v6only"})
		s.start()
		s.serving(0)
		generation := 1
		for range 3 {
			generation = s.reload().To
			s.alone()
		}
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6", []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
		defer os.WriteFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6", []byte("1"), 0)
		for range 10 {
			s.mustAsk("[::1]:"+port, generation)
		}
	})
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
