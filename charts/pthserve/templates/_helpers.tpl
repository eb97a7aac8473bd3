{{- define "pthserve.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- /* Room is left for the longest suffix, "-dashboard-service". */ -}}
{{- define "pthserve.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 45 | trimSuffix "-" -}}
{{- end -}}

{{- define "pthserve.selectorLabels" -}}
app.kubernetes.io/name: {{ include "pthserve.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end -}}

{{- /*
The metadata of a resource: (dict "root" $ ...), and where they differ from the release's own
"name" or "suffix", "component", "labels" and "annotations". The chart's own labels win over the user's.
*/ -}}
{{- define "pthserve.metadata" -}}
{{- $root := .root -}}
{{- $own := dict
  "app.kubernetes.io/name" (include "pthserve.name" $root)
  "app.kubernetes.io/instance" $root.Release.Name
  "app.kubernetes.io/version" $root.Chart.AppVersion
  "app.kubernetes.io/managed-by" $root.Release.Service
  "app.kubernetes.io/component" (.component | default "server")
  "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_")
-}}
name: {{ .name | default (printf "%s%s" (include "pthserve.fullname" $root) (.suffix | default "")) }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- mergeOverwrite (dict) $root.Values.commonLabels (.labels | default dict) $own | toYaml | nindent 2 }}
{{- with mergeOverwrite (dict) $root.Values.commonAnnotations (.annotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "pthserve.serviceAccountName" -}}
{{- default (ternary (include "pthserve.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{- /* The image of a variant: (list $ "full"). */ -}}
{{- define "pthserve.imageOf" -}}
{{- $root := index . 0 -}}
{{- $variant := index . 1 -}}
{{- with $root.Values.image -}}
{{- $repository := .repository -}}
{{- with $root.Values.global.imageRegistry -}}
{{- /* A first part with a dot or a port, or localhost, is a registry: it is replaced. */ -}}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) (regexReplaceAll "^(localhost|[^/]*[.:][^/]*)/" $repository "") -}}
{{- end -}}
{{- if and .digest (eq $variant .variant) -}}
{{ printf "%s@%s" $repository .digest }}
{{- else -}}
{{ printf "%s:%s" $repository (.tag | default (printf "%s-%s" $root.Chart.AppVersion .variant) | replace .variant $variant) }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The service's image. A tag or a digest that is given is taken as it is; else `full` with a GPU is `cuda`. */ -}}
{{- define "pthserve.image" -}}
{{- with .Values.image -}}
{{- $cuda := and $.Values.gpu.enabled (eq .variant "full") (not .tag) (not .digest) -}}
{{- include "pthserve.imageOf" (list $ (ternary "cuda" .variant $cuda)) -}}
{{- end -}}
{{- end -}}

{{- define "pthserve.httpPort" -}}
{{- .Values.settings.port | default 8000 | int -}}
{{- end -}}

{{- /* The port that answers GET /metrics. */ -}}
{{- define "pthserve.metricsPortName" -}}
{{- ternary "metrics" "http" (not (empty .Values.settings.metricsPort)) -}}
{{- end -}}

{{- /* Whether the last pod is removed when there are no requests; empty if not. */ -}}
{{- define "pthserve.toZero" -}}
{{- if and (eq (int .Values.autoscaling.minReplicas) 0) (ne .Values.autoscaling.provider "external") -}}
true
{{- end -}}
{{- end -}}

{{- /* Whether something else than `replicas` sets the number of pods; empty if not. */ -}}
{{- define "pthserve.autoscaled" -}}
{{- if or .Values.autoscaling.enabled (include "pthserve.toZero" .) -}}
true
{{- end -}}
{{- end -}}

{{- define "pthserve.minReplicas" -}}
{{- ternary .Values.autoscaling.minReplicas .Values.replicas (not (empty (include "pthserve.autoscaled" .))) | int -}}
{{- end -}}

{{- define "pthserve.maxReplicas" -}}
{{- ternary .Values.autoscaling.maxReplicas .Values.replicas (not (empty (include "pthserve.autoscaled" .))) | int -}}
{{- end -}}

{{- /*
A query: 1 if requests came through the gateway within the window, also those that it holds, else 0. Traefik counts each
attempt at a service. Without any metric of Traefik there is no result, which is a fault and not a load of zero. KEDA asks
for the last full second: the offset brings what came since.
*/ -}}
{{- define "pthserve.requested" -}}
{{- $namespace := .Release.Namespace -}}
{{- $name := include "pthserve.fullname" . -}}
{{- $services := list (printf "%s-%s-%v@kubernetescrd" $namespace $name .Values.service.port) -}}
{{- if .Values.grpcRoute.enabled -}}
{{- $services = append $services (printf "grpcroute-%s-%s-.+@kubernetesgateway" $namespace $name) -}}
{{- end -}}
count(rate(traefik_service_requests_total{service=~{{ join "|" $services | quote }}}[{{ include "pthserve.window" . }}s] offset -1s) > 0) > bool 0 or 0 * sum(traefik_config_reloads_total)
{{- end -}}

{{- /* Seconds for which a request counts as recent. */ -}}
{{- define "pthserve.window" -}}
{{- min 60 (int .Values.autoscaling.toZero.idleSeconds) -}}
{{- end -}}

{{- /* The address that the weights are downloaded from; empty where they come another way. */ -}}
{{- define "pthserve.weightsAddress" -}}
{{- with .Values.weights -}}
{{- if contains "://" .source -}}
{{- .source -}}
{{- else if eq .source "download" -}}
{{- .download.url -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The file with the public key that the weights must be signed with; empty where none must. */ -}}
{{- define "pthserve.publicKey" -}}
{{- with .Values.weights.publicKey -}}
{{- if .configMap -}}
/run/pthserve/{{ .key }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The file, inside /models, that a source's model lies in; empty for the folder itself. */ -}}
{{- define "pthserve.weightsFile" -}}
{{- $fetched := "" -}}
{{- with include "pthserve.weightsAddress" . -}}
{{- if regexMatch "^(hf|oci)://" . -}}
{{- $fetched = regexReplaceAll "[:@].*$" (regexReplaceAll "^(hf://[^/]+/[^/@]+)@[^/]+" . "${1}" | base) "" -}}
{{- else -}}
{{- $fetched = regexReplaceAll "[?#].*$" . "" | base -}}
{{- end -}}
{{- end -}}
{{- .Values.weights.file | default $fetched -}}
{{- end -}}

{{- define "pthserve.weightsPath" -}}
{{- list "/models" (include "pthserve.weightsFile" .) | join "/" | trimSuffix "/" -}}
{{- end -}}

{{- define "pthserve.weightsClaim" -}}
{{- .Values.weights.pvc.existingClaim | default (printf "%s-weights" (include "pthserve.fullname" .)) -}}
{{- end -}}

{{- define "pthserve.cacheClaim" -}}
{{- .Values.cache.existingClaim | default (printf "%s-cache" (include "pthserve.fullname" .)) -}}
{{- end -}}

{{- define "pthserve.packClaim" -}}
{{- .Values.pack.existingClaim | default (printf "%s-pack" (include "pthserve.fullname" .)) -}}
{{- end -}}

{{- /* The service's environment: what the chart knows, under what the user says. */ -}}
{{- define "pthserve.environment" -}}
{{- $settings := dict "host" "0.0.0.0" "cacheDir" "/var/cache/pthserve" -}}
{{- with .Values.weights -}}
{{- if ne .source "demo" -}}
{{- $_ := set $settings "model" (include "pthserve.weightsPath" $) -}}
{{- end -}}
{{- with .sha256 -}}
{{- $_ := set $settings "sha256" . -}}
{{- end -}}
{{- end -}}
{{- if .Values.pack.enabled -}}
{{- $_ := set $settings "model" "/pack/model" -}}
{{- else if not (include "pthserve.weightsAddress" .) -}}
{{- with include "pthserve.publicKey" . -}}
{{- $_ := set $settings "requireSignature" . -}}
{{- end -}}
{{- end -}}
{{- if .Values.apiKeys.secret -}}
{{- $_ := set $settings "apiKeys" "/run/secrets/pthserve/keys" -}}
{{- end -}}
{{- if .Values.settings.feedback -}}
{{- $_ := set $settings "feedbackPeers" (printf "http://%s-pods.%s:%s" (include "pthserve.fullname" .) .Release.Namespace (include "pthserve.httpPort" .)) -}}
{{- end -}}
{{- if .Values.gpu.enabled -}}
{{- $_ := set $settings "device" "cuda" -}}
{{- end -}}
{{- if .Values.rollout.enabled -}}
{{- /* The canary compares its answers with those of the stable release. The pods of that find out that they would ask themselves. */ -}}
{{- $_ := set $settings "compareWith" (printf "http://%s.%s:%d" (include "pthserve.fullname" .) .Release.Namespace (int .Values.service.port)) -}}
{{- $_ := set $settings "compareShare" 1 -}}
{{- if .Values.apiKeys.secret -}}
{{- $_ := set $settings "compareApiKey" "/run/secrets/pthserve/keys" -}}
{{- end -}}
{{- end -}}
{{- if include "pthserve.toZero" . -}}
{{- $_ := set $settings "listen" "ready" -}}
{{- end -}}
{{- $settings = mergeOverwrite $settings .Values.settings -}}
{{- with $settings.allowedHosts -}}
{{- /* The names under which pods, those of `helm test` among them, reach the Service. */ -}}
{{- $service := include "pthserve.fullname" $ -}}
{{- $own := list "" (printf ".%s" $.Release.Namespace) (printf ".%s.svc" $.Release.Namespace) (printf ".%s.svc.cluster.local" $.Release.Namespace) -}}
{{- range $own -}}
{{- $_ := set $settings "allowedHosts" (printf "%s,%s%s" $settings.allowedHosts $service .) -}}
{{- end -}}
{{- if $settings.feedback -}}
{{- $_ := set $settings "allowedHosts" (printf "%s,%s-pods.%s" $settings.allowedHosts $service $.Release.Namespace) -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := $settings }}
{{- /* toJson writes a whole number without an exponent; 2e+07 would not parse. */ -}}
PTHSERVE_{{ regexReplaceAll "([A-Z])" $name "_${1}" | upper }}: {{ $value | toJson | trimAll "\"" | quote }}
{{ end -}}
{{- end -}}

{{- define "pthserve.podSpec" -}}
serviceAccountName: {{ include "pthserve.serviceAccountName" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- if not .Values.hostUsers }}
hostUsers: false
{{- end }}
{{- with .Values.schedulerName }}
schedulerName: {{ . }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "pthserve.claimSpec" -}}
accessModes:
  {{- toYaml .accessModes | nindent 2 }}
{{- with .storageClass }}
storageClassName: {{ . }}
{{- end }}
resources:
  requests:
    storage: {{ .size }}
{{- end -}}

{{- /* What a ServiceMonitor and a PodMonitor say alike. */ -}}
{{- define "pthserve.scrape" -}}
port: {{ include "pthserve.metricsPortName" . }}
path: /metrics
relabelings:
  - targetLabel: release
    replacement: {{ .Release.Name }}
{{- end -}}

{{- /* The line of an alert that says where its runbook is: (list $ "name"). */ -}}
{{- define "pthserve.runbook" -}}
{{- $alert := index . 1 -}}
{{- with (index . 0).Values.monitoring.rules.runbookUrl -}}
{{- printf "runbook_url: %s#pthserve%s" . $alert | nindent 12 -}}
{{- end -}}
{{- end -}}

{{- /* The workload that an autoscaler scales. */ -}}
{{- define "pthserve.scaled" -}}
apiVersion: {{ ternary "argoproj.io/v1alpha1" "apps/v1" .Values.rollout.enabled }}
kind: {{ ternary "Rollout" "Deployment" .Values.rollout.enabled }}
name: {{ include "pthserve.fullname" . }}
{{- end -}}

{{- /* The Services that a rollout splits the traffic between: (list $ port). What Kubernetes would fill in is there already. */ -}}
{{- define "pthserve.split" -}}
{{- $name := include "pthserve.fullname" (index . 0) -}}
{{- $port := index . 1 -}}
- {group: "", kind: Service, name: {{ $name }}, port: {{ $port }}, weight: 100}
- {group: "", kind: Service, name: {{ $name }}-canary, port: {{ $port }}, weight: 0}
{{- end -}}

{{- /* The ports of a Service. */ -}}
{{- define "pthserve.servicePorts" -}}
- {name: http, port: {{ .Values.service.port }}, targetPort: http, appProtocol: http}
{{- with .Values.settings.grpcPort }}
- {name: grpc, port: {{ . }}, targetPort: grpc, appProtocol: kubernetes.io/h2c}
{{- end }}
{{- with .Values.settings.metricsPort }}
- {name: metrics, port: {{ . }}, targetPort: metrics, appProtocol: http}
{{- end }}
{{- end -}}

{{- /* The filters of a route: those of the values, and the one that holds requests: (list $ filters). */ -}}
{{- define "pthserve.routeFilters" -}}
{{- $filters := index . 1 -}}
{{- if include "pthserve.toZero" (index . 0) -}}
{{- $hold := dict "group" "traefik.io" "kind" "Middleware" "name" (include "pthserve.fullname" (index . 0)) -}}
{{- $filters = append $filters (dict "type" "ExtensionRef" "extensionRef" $hold) -}}
{{- end -}}
{{- with $filters -}}
{{- toYaml . -}}
{{- end -}}
{{- end -}}
