package main

import (
	"bufio"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"time"

	"github.com/gearsfs/gearsfs/cmd/internal/node"
	"github.com/gearsfs/gearsfs/cmd/internal/units"
	"github.com/spf13/pflag"
)

// settings are what the flags, the environment and the configuration file say.
type settings struct {
	data      string
	name      string
	listen    []string
	join      string
	advertise []string
	catchUp   units.Size
	verify    units.Duration
	scrub     units.Size
	mount     string
	http      string
	insecure  bool
	tls       node.TLSFiles
	config    string
	version   bool
}

// envPrefix begins the environment variable of each flag: GEARSFSD_DATA for
// --data, GEARSFSD_TLS_CERT for --tls-cert.
const envPrefix = "GEARSFSD_"

func flagSet(s *settings) *pflag.FlagSet {
	f := pflag.NewFlagSet("gearsfsd", pflag.ContinueOnError)
	f.SortFlags = false
	f.Usage = func() {}
	f.StringVar(&s.data, "data", "", "keep the node's data in `DIR`; made where it is missing")
	f.StringVar(&s.name, "name", "", "the `NAME` of a new node (default the host's name)")
	f.StringSliceVar(&s.listen, "listen", nil, "serve at `ADDR`, host:port or unix:PATH; may be repeated "+
		"(default unix:$XDG_RUNTIME_DIR/gearsfs.sock, else unix:/run/gearsfs.sock)")
	f.StringVar(&s.join, "join", "", "with new data: become a node of the volume that the node at `ADDR` is one of; "+
		"several addresses are separated by commas")
	f.StringSliceVar(&s.advertise, "advertise", nil, "tell the other nodes that this one is reached at `ADDR`; may be repeated "+
		"(default what it listens at)")
	f.StringVar(&s.mount, "mount", "", "also mount the volume on `DIR`")
	f.StringVar(&s.http, "http", "", "answer HTTP at `ADDR`, host:port or unix:PATH: /metrics for Prometheus, /healthz, /readyz, "+
		"and on a unix socket /debug/pprof/; over TCP with --tls-cert it is HTTPS and asks for the client's certificate, as --listen does")
	f.BoolVar(&s.insecure, "insecure", false, "allow TCP beyond loopback without TLS, and believe whom its clients claim to be")
	f.StringVar(&s.tls.Cert, "tls-cert", "", "show the certificate in `FILE` to TCP clients")
	f.StringVar(&s.tls.Key, "tls-key", "", "the certificate's private key, in `FILE`")
	f.StringVar(&s.tls.CA, "tls-ca", "", "let in clients with a certificate that an authority in `FILE` has signed")
	f.Var(&s.catchUp, "catchup-rate", "bring a node that is far behind up to date with at most `SIZE` a second (default 128M)")
	f.Var(&s.verify, "verify-every", "compare the replicas every `DURATION` while this node leads; 0 is never (default 1h)")
	f.Var(&s.scrub, "scrub-rate", "read at most `SIZE` a second, once a week, to find large payloads that the disk has damaged; 0 is never (default 8M)")
	f.StringVar(&s.config, "config", "", "read `FILE`, with lines like: data = /var/lib/gearsfs")
	f.BoolVar(&s.version, "version", false, "print the version")
	return f
}

// verifyEvery is --verify-every as a node takes it.
func (s *settings) verifyEvery() time.Duration {
	if s.verify.Given && s.verify.Value == 0 {
		return -1
	}
	return s.verify.Value
}

// scrubRate is --scrub-rate as a node takes it.
func (s *settings) scrubRate() int64 {
	if s.scrub.Given && s.scrub.Value == 0 {
		return -1
	}
	return int64(min(s.scrub.Value, math.MaxInt64))
}

func usage() string {
	return `A GearsFS node: keeps a volume in a data directory, serves it on sockets, mounts it.
Prints "gearsfsd: ready" on standard error once it serves, and, with --join, once it has caught
up and votes. SIGTERM and SIGINT unmount, finish what was accepted and end it with status 0.

Usage:
  gearsfsd --data DIR [flags]

Examples:
  gearsfsd --data /var/lib/gearsfs --mount /mnt/gears
  gearsfsd --data ~/b --listen 127.0.0.1:4096 --listen unix:/tmp/b.sock
  gearsfsd --data ~/a --http 127.0.0.1:9404              # curl http://127.0.0.1:9404/metrics
  gearsfsd --data ~/c --name c --join unix:/tmp/b.sock   # a second node of ~/b's volume

Flags:
` + flagSet(&settings{}).FlagUsages() + `
Each flag is also an environment variable (GEARSFSD_DATA) and a line of the --config file
(data = DIR). A flag comes before the variable, the variable before the file.
`
}

// readSettings reads the command line, then what it does not say from the
// environment, and then from the configuration file.
func readSettings(args []string, env func(string) (string, bool)) (settings, error) {
	var s settings
	f := flagSet(&s)
	err := f.Parse(args)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return s, err
	case err != nil:
		return s, &usageError{fmt.Errorf("%w (see gearsfsd --help)", err)}
	case f.NArg() > 0:
		return s, &usageError{fmt.Errorf("%q is no flag (see gearsfsd --help)", f.Arg(0))}
	}
	if err := readEnv(f, env); err != nil {
		return s, &usageError{err}
	}
	if s.config != "" {
		if err := readConfig(f, s.config); err != nil {
			return s, &usageError{err}
		}
	}
	if s.data == "" && !s.version {
		return s, &usageError{errors.New("where to keep the data? Name a directory with --data (see gearsfsd --help)")}
	}
	if len(s.listen) == 0 {
		s.listen = []string{"unix:" + node.Sockets(func(name string) string { v, _ := env(name); return v })[0]}
	}
	return s, nil
}

func readEnv(f *pflag.FlagSet, env func(string) (string, bool)) error {
	var err error
	f.VisitAll(func(flag *pflag.Flag) {
		name := envPrefix + strings.ToUpper(strings.ReplaceAll(flag.Name, "-", "_"))
		value, ok := env(name)
		if !ok || value == "" || flag.Changed || err != nil {
			return
		}
		if setErr := f.Set(flag.Name, value); setErr != nil {
			err = fmt.Errorf("%s: %w", name, setErr)
		}
	})
	return err
}

// readConfig reads `name = value` lines; # begins a comment line. A name may be
// repeated where its flag may.
func readConfig(f *pflag.FlagSet, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	defer file.Close()
	said := make(map[string]bool) // on the command line or in the environment
	f.Visit(func(flag *pflag.Flag) { said[flag.Name] = true })
	lines := bufio.NewScanner(file)
	for number := 1; lines.Scan(); number++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		switch {
		case !ok:
			return fmt.Errorf("configuration %s:%d: %q is not like: name = value", path, number, line)
		case f.Lookup(name) == nil || name == "config" || name == "version":
			return fmt.Errorf("configuration %s:%d: there is no setting %q", path, number, name)
		case said[name]:
			continue
		}
		if err := f.Set(name, value); err != nil {
			return fmt.Errorf("configuration %s:%d: %w", path, number, err)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("configuration %s: %w", path, err)
	}
	return nil
}
