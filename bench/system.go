package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/gearsfs/gearsfs/bench/load"
)

// system is something on several nodes that keeps records.
type system interface {
	String() string
	// can tells whether it knows such work.
	can(w load.Work) bool
	// start starts the nodes with no data and waits until they are ready.
	start(ctx context.Context) error
	measure(ctx context.Context, w load.Work) (load.Figures, error)
	// failover kills the leader, measures as load.Failover says, and brings the
	// node back.
	failover(ctx context.Context) (time.Duration, error)
	// check tells whether everything is there that was put in failovers.
	check(ctx context.Context) error
	nodes() []*member
	// stop ends the nodes and removes their data.
	stop() error
}

// member is a node of a system.
type member struct {
	name, program, ready string
	args                 []string
	*process             // nil until it is started
}

// members are the nodes of a system.
type members struct {
	b   *bench
	dir string // of their data
	all []*member
}

func (m *members) nodes() []*member { return m.all }

// launch starts a node, or starts it again.
func (m *members) launch(ctx context.Context, n *member) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	n.process, err = m.b.startProcess(ctx, n.ready, n.program, n.args...)
	return err
}

func (m *members) stop() error {
	var errs []error
	for _, n := range m.all {
		if n.process != nil {
			errs = append(errs, n.kill())
		}
	}
	m.all = nil
	return errors.Join(append(errs, os.RemoveAll(m.dir))...)
}

func (m *members) byName(name string) (*member, error) {
	for _, n := range m.all {
		if n.name == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("the leader %q is none of the nodes", name)
}

// relaunch starts the nodes again that have ended.
func (m *members) relaunch(ctx context.Context) error {
	for _, n := range m.all {
		select {
		case <-n.exited:
			if err := m.launch(ctx, n); err != nil {
				return err
			}
		default:
		}
	}
	return nil
}

// freePorts returns addresses on the loopback interface that nobody listens on.
func freePorts(n int) (addrs []string, err error) {
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close()
		addrs = append(addrs, ln.Addr().String())
	}
	return addrs, nil
}

const clusterNodes = 3

// peerSystem is a peer of three nodes. The load is put on it by a program of
// its own, bench/peers.
type peerSystem struct {
	members
	name string
	urls string // as bench/peers wants them
}

func (p *peerSystem) String() string { return p.name }

func (p *peerSystem) can(w load.Work) bool {
	return w.Clients <= 64 && (w.Do != load.Take || p.name == "nats") && (w.Do != load.Take || !w.Single)
}

func (p *peerSystem) check(context.Context) error { return nil }

func (p *peerSystem) start(ctx context.Context) error {
	var err error
	if p.dir, err = os.MkdirTemp(p.b.dir, p.name+"-"); err != nil {
		return err
	}
	addrs, err := freePorts(2 * clusterNodes)
	if err != nil {
		return err
	}
	clients, routes := addrs[:clusterNodes], addrs[clusterNodes:]
	var urls []string
	for i := range clusterNodes {
		n := &member{name: fmt.Sprint("n", i+1)}
		if p.name == "nats" {
			n.program = "nats-server"
			n.args, err = natsServer(p.dir, n.name, clients[i], routes[i], routes)
			urls = append(urls, n.name+"=nats://"+clients[i])
		} else {
			n.program = "etcd"
			n.args = etcdServer(p.dir, n.name, clients[i], i, routes)
			urls = append(urls, n.name+"=http://"+clients[i])
		}
		p.all = append(p.all, n)
		if err := errors.Join(err, p.launch(ctx, n)); err != nil {
			return err
		}
	}
	p.urls = strings.Join(urls, ",")
	return p.ready(ctx)
}

// natsServer writes the configuration of a server and returns its arguments.
// With sync_interval always what it acknowledges is on disk; all else is as by
// default.
func natsServer(dir, name, client, route string, routes []string) ([]string, error) {
	text := fmt.Sprintf(`server_name: %s
listen: %q
jetstream { store_dir: %q, sync_interval: always }
cluster {
  name: bench
  listen: %q
  routes: [ "nats://%s" ]
}
`, name, client, filepath.Join(dir, name), route, strings.Join(routes, `", "nats://`))
	file := filepath.Join(dir, name+".conf")
	return []string{"-c", file}, os.WriteFile(file, []byte(text), 0o644)
}

// etcdServer returns the arguments of a member: the defaults, but for a quota
// that is not reached.
func etcdServer(dir, name, client string, i int, routes []string) []string {
	var all []string
	for j, route := range routes {
		all = append(all, fmt.Sprintf("n%d=http://%s", j+1, route))
	}
	return []string{
		"--name", name, "--data-dir", filepath.Join(dir, name), "--log-level", "error",
		"--listen-client-urls", "http://" + client, "--advertise-client-urls", "http://" + client,
		"--listen-peer-urls", "http://" + routes[i], "--initial-advertise-peer-urls", "http://" + routes[i],
		"--initial-cluster", strings.Join(all, ","), "--quota-backend-bytes", "8589934592",
	}
}

// ready waits until the nodes are.
func (p *peerSystem) ready(ctx context.Context) error {
	_, err := p.do(ctx, map[string]any{"do": "setup"})
	return err
}

func (p *peerSystem) measure(ctx context.Context, w load.Work) (load.Figures, error) {
	return p.do(ctx, w)
}

func (p *peerSystem) failover(ctx context.Context) (time.Duration, error) {
	pids := make(map[string]int)
	for _, n := range p.all {
		pids[n.name] = n.pid()
	}
	f, err := p.do(ctx, map[string]any{"do": "failover", "pids": pids})
	if err != nil {
		return 0, err
	}
	return time.Duration(f.Max * float64(time.Microsecond)), errors.Join(p.relaunch(ctx), p.ready(ctx))
}

// do has bench/peers do something.
func (p *peerSystem) do(ctx context.Context, job any) (f load.Figures, err error) {
	text, err := json.Marshal(job)
	if err != nil {
		return f, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(p.b.bin, "peers"), p.name, p.urls, string(text))
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return f, fmt.Errorf("%w: %s", err, errs.Bytes())
	}
	return f, json.Unmarshal(out, &f)
}
