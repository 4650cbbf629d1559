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

// server is a program that GearsFS is measured beside.
type server struct {
	program string
	module  string // that it is built from; "" where a package of Debian has it
	ready   string // what it prints when it is; "" where it prints nothing
	scheme  string // of the addresses that bench/peers is told
	// args returns the arguments of one of its nodes: who is the i-th at
	// clients[i] for clients and routes[i] for the others.
	args func(dir string, i int, clients, routes []string) ([]string, error)
}

// servers are the peers that can be named, each by one server. Two peers may be
// two ways to use one.
var servers = map[string]server{
	"nats": {
		program: "nats-server", module: "github.com/nats-io/nats-server/v2",
		ready: "Server is ready", scheme: "nats://", args: natsServer,
	},
	"etcd":         {program: "etcd", module: "go.etcd.io/etcd/server/v3", scheme: "http://", args: etcdServer},
	"redis-list":   {program: "redis-server", ready: "Ready to accept connections", args: redisServer},
	"redis-stream": {program: "redis-server", ready: "Ready to accept connections", args: redisServer},
	"beanstalkd":   {program: "beanstalkd", args: beanstalkdServer},
}

// buildPeers builds, or finds, what is needed for some peers.
func (b *bench) buildPeers(ctx context.Context, names []string) error {
	if len(names) == 0 {
		return nil
	}
	for _, name := range names {
		s := servers[name]
		if s.module != "" {
			if err := b.goBuild(ctx, "bench/peers", "-o", b.bin+"/"+s.program, s.module); err != nil {
				return err
			}
			continue
		}
		if err := b.linkInstalled(s.program); err != nil {
			return err
		}
	}
	return b.goBuild(ctx, "bench/peers", "-o", b.bin+"/peers", ".")
}

// linkInstalled puts a link to a program of the system into b.bin.
func (b *bench) linkInstalled(program string) error {
	at := filepath.Join(b.bin, program)
	if _, err := os.Lstat(at); err == nil {
		return nil
	}
	path, err := exec.LookPath(program)
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/" + program); err != nil {
			return fmt.Errorf("%s is not installed: apt-get install redis-server beanstalkd, or name other -peers", program)
		}
	}
	return os.Symlink(path, at)
}

// peerSystem is a peer. The load is put on it by a program of its own,
// bench/peers.
type peerSystem struct {
	members
	name string
	size int
	urls string // as bench/peers wants them
}

func (p *peerSystem) String() string { return p.name }

func (p *peerSystem) can(w load.Work) bool {
	takes := w.Do == load.Take || w.Do == load.Lease || w.Do == load.Chain
	switch p.name {
	case "etcd":
		return w.Clients <= 64 && !takes
	case "redis-list":
		return w.Do != load.Lease && w.Do != load.Chain
	case "redis-stream":
		return w.Do != load.Take
	case "beanstalkd":
		return w.Do != load.Take && w.Batch == 1
	}
	if p.size == 1 {
		return w.Do != load.Take
	}
	return w.Clients <= 64 && !(takes && w.Single)
}

func (p *peerSystem) check(context.Context) error { return nil }

func (p *peerSystem) start(ctx context.Context) error {
	var err error
	if p.dir, err = os.MkdirTemp(p.b.dir, p.name+"-"); err != nil {
		return err
	}
	addrs, err := freePorts(2 * p.size)
	if err != nil {
		return err
	}
	clients, routes := addrs[:p.size], addrs[p.size:]
	s := servers[p.name]
	var urls []string
	for i, addr := range clients {
		n := &member{name: nodeName(i), program: s.program, ready: s.ready}
		if n.args, err = s.args(p.dir, i, clients, routes); err != nil {
			return err
		}
		urls = append(urls, n.name+"="+s.scheme+addr)
		p.all = append(p.all, n)
		if err := p.launch(ctx, n); err != nil {
			return err
		}
	}
	p.urls = strings.Join(urls, ",")
	return p.ready(ctx)
}

// nodeName is the name of the i-th node, from 0 on.
func nodeName(i int) string { return fmt.Sprint("n", i+1) }

// natsServer writes the configuration of a server. With sync_interval always
// what it acknowledges is on disk; all else is as by default.
func natsServer(dir string, i int, clients, routes []string) ([]string, error) {
	name := nodeName(i)
	text := fmt.Sprintf(`server_name: %s
listen: %q
jetstream { store_dir: %q, sync_interval: always }
`, name, clients[i], filepath.Join(dir, name))
	if len(clients) > 1 {
		text += fmt.Sprintf(`cluster {
  name: bench
  listen: %q
  routes: [ "nats://%s" ]
}
`, routes[i], strings.Join(routes, `", "nats://`))
	}
	file := filepath.Join(dir, name+".conf")
	return []string{"-c", file}, os.WriteFile(file, []byte(text), 0o644)
}

// etcdServer returns the arguments of a member: the defaults, but for a quota
// that is not reached.
func etcdServer(dir string, i int, clients, routes []string) ([]string, error) {
	var all []string
	for j, route := range routes {
		all = append(all, nodeName(j)+"=http://"+route)
	}
	client, route := "http://"+clients[i], "http://"+routes[i]
	return []string{
		"--name", nodeName(i), "--data-dir", filepath.Join(dir, nodeName(i)), "--log-level", "error",
		"--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", route, "--initial-advertise-peer-urls", route,
		"--initial-cluster", strings.Join(all, ","), "--quota-backend-bytes", "8589934592",
	}, nil
}

// redisServer syncs its log before it answers. It neither rewrites the log nor
// saves snapshots, which would take time from what is measured.
func redisServer(dir string, i int, clients, _ []string) ([]string, error) {
	host, port, err := net.SplitHostPort(clients[i])
	return []string{
		"--bind", host, "--port", port, "--dir", dir, "--daemonize", "no",
		"--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0", "--save", "",
	}, err
}

// beanstalkdServer syncs its log at every change.
func beanstalkdServer(dir string, i int, clients, _ []string) ([]string, error) {
	host, port, err := net.SplitHostPort(clients[i])
	return []string{"-l", host, "-p", port, "-b", dir, "-f", "0"}, err
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
