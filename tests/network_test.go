package tests

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// loopbackUp makes loopback usable in the network namespace that the tests run
// in.
func loopbackUp() error {
	if os.Geteuid() != 0 {
		return nil // then it is the machine's
	}
	return ip("link", "set", "lo", "up")
}

func ip(args ...string) error {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// A namespace is a network namespace; it is gone when it is closed and the last
// process in it has ended.
type namespace struct{ file *os.File }

// newNamespace makes one that has loopback.
func newNamespace() (*namespace, error) {
	var n namespace
	err := elsewhere(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		var err error
		if n.file, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		return ip("link", "set", "lo", "up")
	})
	return &n, err
}

// run calls f, and what it starts runs, in the namespace.
func (n *namespace) run(f func() error) error {
	return elsewhere(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter a network namespace: %w", err)
		}
		return f()
	})
}

// elsewhere calls f, which moves its thread to another network namespace, and
// brings the thread back.
func elsewhere(f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return fmt.Errorf("leave a network namespace: %w", back) // the thread stays locked, and ends
	}
	runtime.UnlockOSThread()
	return err
}

// A network joins namespaces by a bridge, and the tests with them. Its stations
// are numbered: 0 are the tests, from 1 on the namespaces. What one sends to
// another can be made to vanish: its neighbour table then names an address that
// nobody has.
type network struct {
	number int
	nodes  []*namespace
}

var networks atomic.Int32

// newNetwork makes a network of n namespaces; it is gone after the test.
func newNetwork(t testing.TB, n int) *network {
	t.Helper()
	require.Zero(t, os.Geteuid(), "network namespaces need root")
	w := &network{number: int(networks.Add(1))}
	t.Cleanup(func() {
		for _, node := range w.nodes {
			if err := node.file.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := ip("link", "del", w.bridge()); err != nil {
			t.Error(err)
		}
	})
	require.NoError(t, ip("link", "add", w.bridge(), "address", w.mac(0), "type", "bridge"))
	require.NoError(t, ip("addr", "add", w.host(0)+"/24", "dev", w.bridge()))
	require.NoError(t, ip("link", "set", w.bridge(), "up"))
	for i := 1; i <= n; i++ {
		require.NoError(t, w.plug(i))
	}
	for i := range n + 1 {
		for j := range n + 1 {
			if i != j {
				require.NoError(t, w.cut(i, j, false))
			}
		}
	}
	return w
}

// plug makes the i-th namespace and its way to the bridge.
func (w *network) plug(i int) error {
	ns, err := newNamespace()
	if err != nil {
		return err
	}
	w.nodes = append(w.nodes, ns)
	here := fmt.Sprintf("v%d.%d", w.number, i)
	there := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.file.Fd())
	err = ip("link", "add", here, "type", "veth", "peer", "name", "eth0", "address", w.mac(i), "netns", there)
	if err != nil {
		return err
	}
	if err := ip("link", "set", here, "master", w.bridge(), "up"); err != nil {
		return err
	}
	return ns.run(func() error {
		if err := ip("addr", "add", w.host(i)+"/24", "dev", "eth0"); err != nil {
			return err
		}
		return ip("link", "set", "eth0", "up")
	})
}

func (w *network) bridge() string    { return fmt.Sprintf("b%d", w.number) }
func (w *network) host(i int) string { return fmt.Sprintf("10.77.%d.%d", w.number, 100+i) }
func (w *network) mac(i int) string  { return fmt.Sprintf("02:00:00:00:%02x:%02x", w.number, 100+i) }

// cut makes what station i sends to j vanish from now on, or arrive again.
func (w *network) cut(i, j int, off bool) error {
	mac := w.mac(j)
	if off {
		mac = w.mac(155) // nobody's
	}
	dev := "eth0"
	if i == 0 {
		dev = w.bridge()
	}
	return w.at(i, func() error {
		return ip("neigh", "replace", w.host(j), "lladdr", mac, "dev", dev, "nud", "permanent")
	})
}

// at calls f at station i.
func (w *network) at(i int, f func() error) error {
	if i == 0 {
		return f()
	}
	return w.nodes[i-1].run(f)
}

// listen and send are for packets at and from a station.
func (w *network) listen(i int) (conn net.PacketConn, err error) {
	err = w.at(i, func() error {
		conn, err = net.ListenPacket("udp", net.JoinHostPort(w.host(i), "7"))
		return err
	})
	return conn, err
}

func (w *network) send(i, j int, text string) error {
	return w.at(i, func() error {
		conn, err := net.Dial("udp", net.JoinHostPort(w.host(j), "7"))
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = io.WriteString(conn, text)
		return err
	})
}

// A network delivers, and loses what it is told to, each way by itself.
func TestNetwork(t *testing.T) {
	t.Parallel()
	w := newNetwork(t, 2)
	for i := range 3 {
		conn, err := w.listen(i)
		require.NoError(t, err)
		defer conn.Close()
		hear := func() string {
			packet := make([]byte, 100)
			require.NoError(t, conn.SetReadDeadline(time.Now().Add(runWithin)))
			n, _, err := conn.ReadFrom(packet)
			require.NoError(t, err)
			return string(packet[:n])
		}
		for j := range 3 {
			if i == j {
				continue
			}
			require.NoError(t, w.cut(j, i, true))
			require.NoError(t, w.send(j, i, "lost"))
			require.NoError(t, w.cut(j, i, false))
			require.NoError(t, w.cut(i, j, true))
			require.NoError(t, w.send(j, i, fmt.Sprint("from ", j)))
			require.Equal(t, fmt.Sprint("from ", j), hear())
			require.NoError(t, w.cut(i, j, false))
		}
	}
}
