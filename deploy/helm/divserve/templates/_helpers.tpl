{{- define "divserve.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Also the labels of the pods: those of "divserve.labels" change with every version of the chart, and
     each change would restart the replicas. */}}
{{- define "divserve.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Of the pods of a server on several hosts that serve no HTTP: the service must not find them. */}}
{{- define "divserve.nodeSelector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-node
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "divserve.hosts" -}}
matchLabels:
  app.kubernetes.io/instance: {{ .Release.Name }}
matchExpressions:
  - {key: app.kubernetes.io/name, operator: In, values: [{{ .Chart.Name }}, {{ .Chart.Name }}-node]}
{{- end -}}

{{- define "divserve.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "divserve.selector" . }}
{{- end -}}

{{- define "divserve.image" -}}
{{- $build := ternary "cuda" "cpu" (gt (int .Values.gpus) 0) -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default (printf "%s-%s" .Chart.AppVersion $build)) -}}
{{- end -}}

{{- define "divserve.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "divserve.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* Longer than preStop and drain together: after it, the kubelet kills what still answers. Engines, open
     connections and the last spans take up to half a minute more. */}}
{{- define "divserve.grace" -}}
{{- $least := add .Values.shutdown.preStopSeconds .Values.shutdown.drainSeconds -}}
{{- $grace := .Values.shutdown.terminationGracePeriodSeconds -}}
{{- if kindIs "invalid" $grace -}}
{{- add $least 30 -}}
{{- else if le (int $grace) (int $least) -}}
{{- fail (printf "shutdown.terminationGracePeriodSeconds (%d) must be more than preStopSeconds and drainSeconds together (%d)" (int $grace) (int $least)) -}}
{{- else -}}
{{- int $grace -}}
{{- end -}}
{{- end -}}

{{/* A volume that only one node can mount is given up by the old pod before a new one, perhaps on another
     node, can start. */}}
{{- define "divserve.rollingUpdate" -}}
{{- if and .Values.cache.existingClaim (ne .Values.cache.accessMode "ReadWriteMany") -}}
maxSurge: 0
maxUnavailable: 1
{{- else -}}
{{- toYaml .Values.strategy.rollingUpdate -}}
{{- end -}}
{{- end -}}

{{- define "divserve.podSecurity" -}}
runAsNonRoot: true
{{- if not .Values.podSecurity.assignedIds }}
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "divserve.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}
