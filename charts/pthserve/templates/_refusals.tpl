{{- /* What cannot work is refused here, and nowhere else. */ -}}
{{- define "pthserve.refuse" -}}
{{- $ := . -}}
{{- $most := include "pthserve.maxReplicas" . | int -}}
{{- $file := include "pthserve.weightsFile" . -}}

{{- with .Values.weights -}}
{{- if eq .source "pvc" -}}
{{- if eq (empty .pvc.existingClaim) (not .pvc.create) -}}
{{- fail "weights.source is pvc: name a claim in weights.pvc.existingClaim, or set weights.pvc.create to make one (not both)." -}}
{{- end -}}
{{- include "pthserve.refuseSingleWriter" (list $ .pvc "weights.pvc" $most) -}}
{{- else if and (eq .source "configMap") (not .configMap.name) -}}
{{- fail "weights.source is configMap: name it in weights.configMap.name." -}}
{{- else if and (eq .source "download") (not (regexMatch "^(https?://[^/]+/|(s3|gs|az|hf|oci)://.)" .download.url)) -}}
{{- fail "weights.source is download: give the address of the model in weights.download.url, such as https://host/a.pth." -}}
{{- else if and (regexMatch "^https?://" (include "pthserve.weightsAddress" $)) (not .sha256) -}}
{{- fail "The weights are a download: pin the file by its SHA-256 in weights.sha256." -}}
{{- else if and (eq .source "image") (not .image.reference) -}}
{{- fail "weights.source is image: name the image in weights.image.reference." -}}
{{- else if and (eq .source "image") (semverCompare "<1.33-0" $.Capabilities.KubeVersion.Version) -}}
{{- fail (printf "weights.source is image: volumes from images need Kubernetes 1.33 or newer, and this is %s. Use pvc or download." $.Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if and $.Values.settings.model (ne .source "demo") -}}
{{- fail (printf "settings.model is given, but weights.source is %s and says already where the model is. Use weights.file." .source) -}}
{{- end -}}
{{- if and .publicKey.configMap (eq .source "demo") -}}
{{- fail "weights.publicKey is for weights of your own, and weights.source is demo." -}}
{{- end -}}
{{- if and .publicKey.configMap (eq $.Values.image.variant "slim") (not $.Values.pack.enabled) (not (include "pthserve.weightsAddress" $)) -}}
{{- fail "weights.publicKey: the slim image verifies no signature of mounted weights; set pack.enabled, image.variant to full, or let them be downloaded." -}}
{{- end -}}
{{- if and .publicKey.configMap $.Values.settings.requireSignature -}}
{{- fail "weights.publicKey and settings.requireSignature say the same thing: give weights.publicKey alone." -}}
{{- end -}}
{{- if and .sha256 $.Values.settings.sha256 -}}
{{- fail "weights.sha256 and settings.sha256 say the same thing: give weights.sha256 alone." -}}
{{- end -}}
{{- end -}}

{{- if and (eq .Values.image.variant "slim") (not .Values.pack.enabled) (regexMatch "\\.(pth|pt|bin|safetensors)$" $file) -}}
{{- fail (printf "image.variant is slim, which has no torch to build %s with: set pack.enabled, or image.variant to full." $file) -}}
{{- end -}}
{{- if and (eq .Values.image.variant "slim") .Values.gpu.enabled -}}
{{- fail "gpu.enabled needs torch: set image.variant to full." -}}
{{- end -}}

{{- with .Values.cache -}}
{{- if and .existingClaim .create -}}
{{- fail "cache.existingClaim names a claim and cache.create makes one: give one of them." -}}
{{- end -}}
{{- if or .existingClaim .create -}}
{{- include "pthserve.refuseSingleWriter" (list $ . "cache" $most) -}}
{{- end -}}
{{- end -}}

{{- with .Values.pack -}}
{{- if .enabled -}}
{{- if eq $.Values.weights.source "demo" -}}
{{- fail "pack.enabled packs mounted weights, and weights.source is demo: choose pvc, configMap, download or image." -}}
{{- end -}}
{{- if eq (empty .existingClaim) (not .create) -}}
{{- fail "pack.enabled needs a claim: name one in pack.existingClaim, or set pack.create to make one (not both)." -}}
{{- end -}}
{{- if $.Values.gpu.enabled -}}
{{- fail "pack.enabled serves on the CPU: leave it off with gpu.enabled." -}}
{{- end -}}
{{- include "pthserve.refuseSingleWriter" (list $ . "pack" $most) -}}
{{- end -}}
{{- end -}}

{{- if and .Values.apiKeys.secret .Values.settings.apiKeys -}}
{{- fail "apiKeys.secret and settings.apiKeys both say where the keys are: give one." -}}
{{- end -}}

{{- $ends := add (int .Values.shutdown.preStopSeconds) (ceil .Values.settings.drainSeconds | int) (ceil .Values.settings.deadline | int) | int -}}
{{- if ge $ends (int .Values.shutdown.graceSeconds) -}}
{{- fail (printf "A pod would be killed while it drains: shutdown.graceSeconds (%d) must be more than shutdown.preStopSeconds + settings.drainSeconds + settings.deadline (%d)." (int .Values.shutdown.graceSeconds) $ends) -}}
{{- end -}}

{{- with .Values.autoscaling -}}
{{- if include "pthserve.autoscaled" $ -}}
{{- if gt (int .minReplicas) (int .maxReplicas) -}}
{{- fail (printf "autoscaling.minReplicas (%d) is more than autoscaling.maxReplicas (%d)." (int .minReplicas) (int .maxReplicas)) -}}
{{- end -}}
{{- if and (eq .metric "cpu") (not (dig "requests" "cpu" "" $.Values.resources)) -}}
{{- fail "autoscaling.metric cpu is measured against resources.requests.cpu: give it." -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- with .Values.networkPolicy -}}
{{- if and .enabled (not .egress) (or (include "pthserve.weightsAddress" $) $.Values.settings.otlpEndpoint) -}}
{{- fail "networkPolicy lets a pod connect nowhere, but a download of the weights or settings.otlpEndpoint must: allow it (and DNS) in networkPolicy.egress, or set networkPolicy.enabled to false." -}}
{{- end -}}
{{- end -}}

{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "httpRoute.enabled needs a gateway in httpRoute.parentRefs." -}}
{{- end -}}
{{- with .Values.grpcRoute -}}
{{- if and .enabled (not .parentRefs) -}}
{{- fail "grpcRoute.enabled needs a gateway in grpcRoute.parentRefs." -}}
{{- end -}}
{{- if and .enabled (not $.Values.settings.grpcPort) -}}
{{- fail "grpcRoute.enabled needs the port of gRPC in settings.grpcPort, such as 8001." -}}
{{- end -}}
{{- end -}}
{{- if include "pthserve.toZero" . -}}
{{- include "pthserve.refuseMissing" (list $ "autoscaling.minReplicas 0" "docs/scale-to-zero.md" (dict
  "gateway.networking.k8s.io/v1/HTTPRoute" "the Gateway API"
  "keda.sh/v1alpha1/ScaledObject" "KEDA"
  "traefik.io/v1alpha1/Middleware" "Traefik, with its own kinds"
)) -}}
{{- if not .Values.httpRoute.enabled -}}
{{- fail "autoscaling.minReplicas 0 lets the gateway hold a request until there is a pod: set httpRoute.enabled and httpRoute.parentRefs." -}}
{{- end -}}
{{- if or .Values.ingress.enabled (ne .Values.service.type "ClusterIP") -}}
{{- fail "autoscaling.minReplicas 0 sees only requests that come through httpRoute: leave out ingress.enabled, and service.type at ClusterIP." -}}
{{- end -}}
{{- if eq (.Values.settings.listen | default "ready") "early" -}}
{{- fail "autoscaling.minReplicas 0 sends requests to a pod as soon as it accepts connections: leave out settings.listen." -}}
{{- end -}}
{{- if .Values.rollout.enabled -}}
{{- fail "rollout.enabled judges a release by its traffic, and without pods there is none: set autoscaling.minReplicas to 1 or more." -}}
{{- end -}}
{{- if and .Values.grpcRoute.enabled (gt $most 1) -}}
{{- fail "grpcRoute.enabled with autoscaling.minReplicas 0: all calls of a gateway go to one pod, over one connection. Set autoscaling.maxReplicas to 1, or minReplicas to 1 or more." -}}
{{- end -}}
{{- end -}}
{{- with .Values.rollout -}}
{{- if .enabled -}}
{{- include "pthserve.refuseMissing" (list $ "rollout.enabled" "docs/rollouts.md" (dict
  "gateway.networking.k8s.io/v1/HTTPRoute" "the Gateway API"
  "argoproj.io/v1alpha1/Rollout" "Argo Rollouts"
  "monitoring.coreos.com/v1/PodMonitor" "the Prometheus operator"
)) -}}
{{- if not $.Values.httpRoute.enabled -}}
{{- fail "rollout.enabled moves the traffic of an HTTPRoute in steps: set httpRoute.enabled and httpRoute.parentRefs." -}}
{{- end -}}
{{- if or $.Values.httpRoute.extraBackendRefs $.Values.grpcRoute.extraBackendRefs -}}
{{- fail "rollout.enabled sets the weights of the routes: leave out extraBackendRefs." -}}
{{- end -}}
{{- if not $.Values.monitoring.podMonitor.enabled -}}
{{- fail "rollout.enabled reads its gates from Prometheus, by labels that only the PodMonitor sets: set monitoring.podMonitor.enabled." -}}
{{- end -}}
{{- if eq $.Values.strategy.type "Recreate" -}}
{{- fail "rollout.enabled keeps the old pods while new ones start: leave strategy.type at RollingUpdate." -}}
{{- end -}}
{{- if and .gates.accuracy (not $.Values.settings.feedback) -}}
{{- fail "rollout.gates.accuracy needs labels from clients: set settings.feedback to the number of answers that wait for one." -}}
{{- end -}}
{{- range $i, $weight := .steps -}}
{{- if and $i (le (int $weight) (int (index $.Values.rollout.steps (int (sub $i 1))))) -}}
{{- fail (printf "rollout.steps must rise: %d is not more than the step before it." (int $weight)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.gpu.enabled .Values.gpu.resourceClaims (semverCompare "<1.34-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "gpu.resourceClaims needs Kubernetes 1.34 or newer, and this is %s: use gpu.resourceName with a device plugin." .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if and (not .Values.hostUsers) (semverCompare "<1.33-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "hostUsers is false: user namespaces need Kubernetes 1.33 or newer, and this is %s." .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- with .Values.verticalPodAutoscaler -}}
{{- if and .enabled (has "cpu" .controlledResources) (include "pthserve.autoscaled" $) (eq $.Values.autoscaling.metric "cpu") -}}
{{- fail "verticalPodAutoscaler would change the CPU request that autoscaling.metric cpu is measured against: leave cpu out of verticalPodAutoscaler.controlledResources, or choose another metric." -}}
{{- end -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.enabled needs a host name in ingress.hosts." -}}
{{- end -}}
{{- if and .Values.monitoring.serviceMonitor.enabled .Values.monitoring.podMonitor.enabled -}}
{{- fail "monitoring.serviceMonitor and monitoring.podMonitor would scrape each pod twice: enable one." -}}
{{- end -}}
{{- end -}}

{{- /* Refuses a claim that only one node can mount when more than one pod may run: (list $ values path pods). */ -}}
{{- define "pthserve.refuseSingleWriter" -}}
{{- $root := index . 0 -}}
{{- $claim := index . 1 -}}
{{- $path := index . 2 -}}
{{- $pods := index . 3 -}}
{{- /* Of an existing claim only the cluster knows. The chart looks nothing up, so that every tool renders the same. */ -}}
{{- $modes := ternary list $claim.accessModes (not (empty $claim.existingClaim)) -}}
{{- if and (gt $pods 1) $modes (not (or (has "ReadWriteMany" $modes) (has "ReadOnlyMany" $modes))) -}}
{{- fail (printf "%s: a claim that is %s cannot be shared by %d pods: use ReadWriteMany or ReadOnlyMany, or run one pod." $path (join ", " $modes) $pods) -}}
{{- end -}}
{{- end -}}

{{- /* Refuses what needs kinds that the cluster does not have: (list $ what page kinds), kinds by their names with what brings them. */ -}}
{{- define "pthserve.refuseMissing" -}}
{{- $root := index . 0 -}}
{{- $what := index . 1 -}}
{{- $page := index . 2 -}}
{{- range $kind, $missing := index . 3 -}}
{{- if not ($root.Capabilities.APIVersions.Has $kind) -}}
{{- fail (printf "%s needs %s, and the cluster has no %s: install it (%s). Without a cluster, name what yours has: helm template --api-versions %s" $what $missing $kind $page $kind) -}}
{{- end -}}
{{- end -}}
{{- end -}}
