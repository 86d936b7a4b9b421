// CoreDNS with only the plugins that a single test node needs: pods' names, and nothing about zones, TLS or caches
// on disk.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
)

// The order of this list is the order in which a question passes the plugins.
func init() {
	dnsserver.Directives = []string{"errors", "health", "ready", "cache", "kubernetes", "forward"}
}

func main() { coremain.Run() }
