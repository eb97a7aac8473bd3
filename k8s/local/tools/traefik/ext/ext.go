// Package ext stands in for a folder that the module of Traefik names but does not contain: fields that others add.
package ext

type (
	HTTP   struct{}
	Router struct{}
)
